"""How a page is read: figures first, charts that do not need colours, and a layout that fits a screen."""

import itertools
import json
import re
import shutil
import subprocess
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import Page, edit, two_by_two, write_run

import sppcls
from sppcls.report.plots import Curve, histogram, line_plot
from sppcls.report.run_page import write_run_page
from sppcls.report.sweep_page import write_sweep_report

HEIGHTS = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@given(HEIGHTS, st.floats(0.1, 10))
def test_names_beside_curves_keep_their_order_and_do_not_overlap(heights, gap):
    from sppcls.report.plots import spread

    placed = spread(heights, gap, 100)
    by_height = [y for _, _, y in sorted((h, i, y) for i, (h, y) in enumerate(zip(heights, placed, strict=True)))]
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(by_height))
    assert max(placed) <= 100
    steps = [b - a for a, b in itertools.pairwise(sorted(heights))]
    if all(step >= gap for step in steps):
        assert placed == pytest.approx(heights)


def markers(svg):
    """Return the marker shapes of an SVG by the colour that they are filled with."""
    found = {}
    for name, colour in re.findall(r'<use xlink:href="#(\w+)" [^>]*fill: (#\w+)', svg):
        found.setdefault(colour, set()).add(name)
    return {colour: names for colour, names in found.items() if colour not in ("#808080", "#000000")}


def test_curves_of_two_scales_differ_in_more_than_colour_and_are_named_at_their_ends(tmp_path):
    page = write_run_page(write_run(tmp_path / "run")).read_text()
    svg = re.findall(r"<svg.*?</svg>", page, re.S)[1]
    by_colour = markers(svg)
    assert len(by_colour) == 2
    assert not set.intersection(*by_colour.values())
    for name in ("val at 48", "val at 64", "train at 48", "train at 64"):
        assert f">{name}<" in svg
    assert "legend" not in svg
    assert "stroke-dasharray" in svg


def test_what_all_names_share_is_said_once_and_long_names_have_a_legend():
    curve = Curve([(48, 0.5), (64, 0.6)])
    short = line_plot({"model.levels=[1]": curve, "model.levels=[4,2,1]": curve}, x="scale", y="top-1")
    assert ">[4,2,1]<" in short
    assert "legend" not in short
    long = line_plot({"one variant with words": curve, "another variant": curve}, x="scale", y="top-1")
    assert "legend" in long
    assert len(markers(long)) == 2


def tiles(text):
    return dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)</dd></div>", text))


def test_the_figures_and_settings_of_a_run_stand_before_its_curves(tmp_path):
    page = write_run_page(write_run(tmp_path / "run")).read_text()
    found = tiles(page[: page.index("<svg")])
    assert found["top-1 at scale 64"] == "75.0%"
    assert found["generalization gap (points)"] == "+10.0"
    assert found["scale spread (points)"] == "25.0"
    assert {"scale consistency", "epochs", "time", "model.backbone", "schedule.scales", "seed"} <= found.keys()


def test_the_tiles_of_a_sweep_are_its_variants(tmp_path):
    write_sweep_report(two_by_two(tmp_path / "s"))
    page = (tmp_path / "s" / "report.html").read_text()
    found = tiles(page[: page.index("<svg")])
    assert found == {"top-1 at scale 64, base (baseline)": "75.0%", "top-1 at scale 64, other": "80.0%"}


def test_right_answers_are_shown_too(tmp_path):
    run = write_run(tmp_path / "run")
    one = {"image": "a/r.jpg", "class": "<b>", "predicted": "<b>", "confidence": 0.99, "thumbnail": "BBBB"}
    edit(run / "mistakes.json", lambda values: values.update(right=[one]))
    page = Page(write_run_page(run).read_text())
    assert "Most confident correct predictions" in page.text
    assert "<b> 99.0%" in " ".join(page.text.split())
    assert ("img", "src", "data:image/jpeg;base64,BBBB") in page.attributes


def test_a_measure_of_another_package_is_on_the_page(tmp_path):
    run = write_run(tmp_path / "run")
    edit(run / "summary.json", lambda values: values.update(measures={"hardest <quarter>": 0.5}))
    page = Page(write_run_page(run).read_text())
    assert re.search(r"hardest <quarter>\s*0.5", page.text)


def test_a_table_can_be_scrolled_by_keyboard(tmp_path):
    page = write_run_page(write_run(tmp_path / "run")).read_text()
    boxes = re.findall(r'<div class="scroll[^"]*"( tabindex="0")?>', page)
    assert len(boxes) == page.count("<table") > 4
    assert all(boxes)


def test_a_run_has_loss_rate_and_a_row_a_class(tmp_path):
    page = write_run_page(write_run(tmp_path / "run")).read_text()
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert any(">learning rate<" in svg for svg in svgs)
    assert any(">training<" in svg and ">loss<" in svg for svg in svgs)
    found = tiles(page[: page.index("<svg")])
    assert (found["training images"], found["validation images"]) == ("80", "40")
    rows = re.findall(r"<td>(cat|dog|owl)</td><td>(\d+)</td><td>(\d+)</td><td>([\d.]+)%</td>", page)
    assert sorted(row[0] for row in rows) == ["cat", "dog", "owl"]
    assert sum(int(row[1]) for row in rows) == 40
    assert sum(int(row[2]) for row in rows) == 30
    assert all(float(share) == pytest.approx(100 * int(right) / int(n), abs=0.06) for _, n, right, share in rows)
    assert "<th>images</th>" in page
    assert re.search(r"<td>\d+ of 1[34]</td>", page)


def test_a_job_leads_to_its_page_where_there_is_one_and_a_long_name_is_cut_in_the_middle(tmp_path):
    name = "a b&'\"<" + "long" * 20
    write_run_page(write_run(tmp_path / "s" / name))
    write_run(tmp_path / "s" / "without", seed=1)
    write_sweep_report(tmp_path / "s")
    page = Page((tmp_path / "s" / "report.html").read_text())
    links = [value for tag, key, value in page.attributes if (tag, key) == ("a", "href")]
    assert [(tmp_path / "s" / unquote(link)).is_file() for link in links] == [True]
    assert ("a", "title", name) in page.attributes
    assert "…" in page.text


def test_scales_are_named_in_a_histogram():
    svg = histogram(np.array([3, 5]), np.array([64.0, 128.0, 256.0]), [96, 224])
    assert {"96", "224"} <= set(re.findall(r">([^<>]+)</text>", svg))


MEASURE = """<script>
for (const one of document.querySelectorAll("details")) one.open = true;
const box = one => one.getBoundingClientRect();
document.title = JSON.stringify({
  page: [document.documentElement.scrollWidth, innerWidth],
  charts: [...document.querySelectorAll("svg")].map(one => [box(one).left, box(one).right]),
  text: Math.min(...[...document.querySelectorAll("svg text")].map(one => box(one).height)),
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_charts_fill_a_wide_screen_in_two_columns_and_a_narrow_one_in_one(tmp_path):
    page = write_run_page(write_run(tmp_path / "run", classes=[f"class-{n}" for n in range(20)])).read_text()
    bare = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", MEASURE)
    (tmp_path / "bare.html").write_text(bare)
    for width, columns in ((1280, 2), (500, 1)):
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={width},900",
            "--dump-dom",
        ]
        shown = subprocess.run([*command, f"file://{tmp_path}/bare.html"], capture_output=True, text=True, timeout=120)
        found = json.loads(re.search("<title>(.*?)</title>", shown.stdout)[1])
        assert found["page"][0] <= found["page"][1]
        assert len({round(left) for left, _ in found["charts"]}) == columns
        assert max(right for _, right in found["charts"]) > 0.85 * width
        assert found["text"] >= 11


def test_a_notebook_draws_what_the_page_has(tmp_path):
    run = write_run(tmp_path / "run")
    drawn = sppcls.plots(run)
    assert {"scales", "loss", "learning rate"} <= drawn.keys() <= {"scales", "gap", "loss", "learning rate"}
    page = write_run_page(run).read_text()
    assert len(drawn) == page.count("<svg") > 2
    assert all(svg.startswith("<svg") for svg in drawn.values())
    assert drawn._repr_html_().count("<svg") == len(drawn)
