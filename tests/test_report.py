"""Reports: numbers equal oracles, a job that is broken costs its own row, and a page is one file that asks nobody."""

import csv
import itertools
import json
import operator
import re
import shutil
import statistics
from argparse import Namespace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sppcls import commands
from sppcls.commands.report import run as run_report
from sppcls.errors import ConfigError, SppclsError
from sppcls.measure.answers import Answers
from sppcls.measure.scales import ScaleResult, ScaleRow
from sppcls.measure.statistics import Estimate, crossed, estimate
from sppcls.report import plots, sweep_figures, sweep_page
from sppcls.report.page import MOST, confusion, interval, percent, points
from sppcls.report.runs import Run, chosen_baseline, flat, read_run, read_runs, variants
from sppcls.report.study import TESTED, study, values_of
from sppcls.report.sweep_page import MEASURES, write_sweep_report
from sppcls.spec import parse
from sppcls.terminal import show


def report(folder: Path) -> int:
    return run_report(Namespace(directory=str(folder), baseline=[]))


EPOCH = (
    "epoch", "step", "scale", "lr", "train_loss", "train_acc1", "val_scale", "val_loss", "val_acc1", "val_acc5",
    "val_class_acc", "val_ece", "images", "megapixels", "seconds", "images_per_s",
)  # fmt: skip
GAP = ("epoch", "scale", "train_acc1", "val_acc1", "gap", "train_loss", "val_loss", "seconds")
IMAGES = 40
RIGHT = {48: 20, 64: 30, 96: 24}  # right answers of 40 by test scale; trained at 48 and 64
SINGLE = {"schedule": {"kind": "single", "scales": [64]}}
FIXED = SINGLE | {"model": {"pool": "fixed"}, "data": {"fit": "warp"}}
FOUND_ELSEWHERE = {
    "command": "train.py -m seed=0,1 'model.levels=[2,1],[1]'",
    "versions": {"python": "3.11.7", "sppcls": "0.1.0"},
    "hardware": {"host": "elsewhere", "cores": 2, "gpu": None},
}


def answered(right, *, seed=0, images=IMAGES, classes=3):
    """Return answers of which ``right[scale]`` are right, drawn by ``seed``; a wrong one names the next class."""
    targets = np.arange(images) % classes
    answers = Answers.empty(sorted(right), targets, [f"photos/{index}.jpg" for index in range(images)])
    rng = np.random.default_rng(seed)
    for row, scale in enumerate(sorted(right)):
        chosen = rng.permutation(images)[: right[scale]]
        answers.predicted[row] = (targets + 1) % classes
        answers.predicted[row, chosen] = targets[chosen]
    answers.confidence[:], answers.loss[:], answers.in_top5[:] = 0.5, 1.0, True
    return answers


def write_run(
    folder, right=RIGHT, *, seed=0, variant=None, baseline=None, state="finished", error=None, images=IMAGES,
    classes=("cat", "dog", "owl"), gap=0.1, curve=(0.2, 0.4, 0.5), megapixels=10.0, thumbnails=("AAAA",) * 2,
    seconds=12.5, mixing=None, **config,
):  # fmt: skip
    """Write a run folder as training leaves it, from a few numbers; a run that is not finished has its curves alone.

    Args:
        folder: Where.
        right: Right answers by test scale.
        seed: Of the config, and of which images are answered rightly.
        variant: The name that a sweep gave it.
        baseline: The variant that its sweep names.
        state: Of status.json.
        error: Of status.json.
        images: Of the validation set.
        classes: Their names.
        gap: Training less validation accuracy, at every trained scale and epoch.
        curve: Validation accuracy by epoch at the largest trained scale, as gap.csv has it; at others half of it.
        megapixels: Of each epoch.
        thumbnails: A mistake each, in base64.
        seconds: What it took.
        mixing: What its steps are like.
        **config: Groups of the spec, as ``model={"pool": "gap"}``.
    """
    folder.mkdir(parents=True)
    sweep = config.pop("sweep", {"variant": variant, "baseline": baseline})
    config = {"schedule": {"kind": "alternate", "scales": [64, 48]}} | config
    spec = parse({"seed": seed, "run_dir": str(folder), "sweep": sweep, **config})
    (folder / "config.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
    status = {"state": state, "pid": 7, "started": seconds * 1e6, "updated": seconds * 2e6, **FOUND_ELSEWHERE}
    write_json(folder / "status.json", status | ({"error": error} if error else {}))
    trained = sorted(set(spec.schedule.scales))
    last = max(trained)
    epochs = [
        dict.fromkeys(EPOCH, 0.5) | {"epoch": e, "scale": last, "val_acc1": acc1, "megapixels": megapixels}
        for e, acc1 in enumerate(curve)
    ]
    write_csv(folder / "metrics.csv", EPOCH, [row.values() for row in epochs])
    measured = [(e, s, acc1 if s == last else acc1 / 2) for e, acc1 in enumerate(curve) for s in trained]
    write_csv(folder / "gap.csv", GAP, [(e, s, a + gap, a, gap, 1.0, 1.5, seconds) for e, s, a in measured])
    (folder / "train.log").write_text("epoch 1\nepoch 2\nthe last line\n")
    if state != "finished":
        return folder
    answers = answered(right, seed=seed, images=images, classes=len(classes))
    answers.save(folder)
    rows = tuple(
        ScaleRow(scale, n / images, n / images - 0.1, n / images + 0.1, 1.0, 0.9, 0.05, images, scale in trained)
        for scale, n in sorted(right.items())
    )
    acc1, at = right[last] / images, [scale for scale in trained if scale in right]
    costs = {"padding": 0.05, "megapixels": megapixels, "upscaled": 0.3, "lost": 0.0, "distortion": 1.0, "shapes": 12}
    write_json(
        folder / "summary.json",
        ScaleResult(rows, answers).summary()
        | {"acc1": acc1, "train_acc1": acc1 + gap, "generalization_gap": gap}
        | {"gaps": [{"scale": s, "train_acc1": right[s] / images + gap, "generalization_gap": gap} for s in at]}
        | {"val_scale": last, "epochs": len(curve), "train_megapixels": len(curve) * megapixels, "seed": seed}
        | {"parameters": 1234, "classes": len(classes), "train_images": 80, "val_images": images}
        | {"data_costs": [{"scale": scale, **costs} for scale in trained], "seconds": seconds, "gap_seconds": 1.0}
        | ({"mixing": mixing} if mixing else {}),
    )
    worst = [
        {"image": f"photos/{n}.jpg", "class": classes[n % 2], "predicted": classes[n % 2 + 1], "confidence": 0.9}
        | {"size": [10, 20], "thumbnail": thumbnail}
        for n, thumbnail in enumerate(thumbnails)
    ]
    write_json(folder / "mistakes.json", {"scale": last, "classes": list(classes), "worst": worst})
    return folder


def write_json(path, values):
    path.write_text(json.dumps(values))


def write_csv(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def edit(path, change):
    """Rewrite a JSON file as ``change`` leaves its values."""
    values = json.loads(path.read_text())
    change(values)
    write_json(path, values)


def studied(folder, baseline="base"):
    return study(variants(read_runs(folder)), baseline)


def two_by_two(folder, **config):
    """Write base and other, seeds 0 and 1, the other better by two images."""
    for seed in (0, 1):
        write_run(folder / f"base-{seed}", seed=seed, variant="base", baseline="base", **config)
        more = {scale: count + 2 for scale, count in RIGHT.items()}
        write_run(folder / f"other-{seed}", more, seed=seed, variant="other", baseline="base", **config)
    return folder


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory):
    return two_by_two(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def pair(whole_pair, tmp_path):
    """Return a copy of `two_by_two`, which is faster than writing it."""
    return shutil.copytree(whole_pair, tmp_path / "pair")


@pytest.fixture
def no_plots(monkeypatch):
    """Draw nothing: a plot takes a fifth of a second."""
    monkeypatch.setattr(plots, "line_plot", lambda *_, **__: "<svg></svg>")
    monkeypatch.setattr(sweep_figures, "dot_plot", lambda *_, **__: "<svg></svg>")


# Numbers


def acc1_of(counts, **more):
    """Return the folder-writing arguments of a run a seed: right answers at 64 are given, the others follow."""
    return [
        {"right": {48: n - 4 - n * 7 % 5, 64: n, 96: n - 2 + seed % 4}, "seed": seed} | more
        for seed, n in counts.items()
    ]


def by_holm(ps):
    """Return Holm's adjusted p by the book: step down, never below the one before, at most 1."""
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(ps) - rank) * p))
        adjusted[name] = highest
    return adjusted


def right_at(folder, scale):
    """Return which images a run answered rightly, from its archive."""
    with np.load(folder / "answers.npz") as file:
        row = file["scales"].tolist().index(scale)
        return file["predicted"][row] == file["targets"]


def area(counts):
    """Return the mean accuracy over log scale of right answers by scale, by trapezoids."""
    scales = sorted(counts)
    logs, heights = np.log(scales), [counts[scale] / IMAGES for scale in scales]
    parts = zip(itertools.pairwise(logs), itertools.pairwise(heights), strict=True)
    return sum((b - a) * (p + q) / 2 for (a, b), (p, q) in parts) / np.ptp(logs)


BASE = {0: 22, 1: 25, 2: 21, 3: 27, 4: 24, 5: 23, 6: 26}
OTHER = {1: 28, 2: 27, 3: 28, 4: 30, 5: 24, 6: 31, 7: 20}  # six seeds in common with the baseline
THIRD = {2: 20, 3: 25, 4: 24, 9: 30}  # three


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Write three variants whose seeds overlap in part; the runs by variant and seed as they were asked for."""
    folder, asked = tmp_path_factory.mktemp("small"), {}
    sides = {
        "base": acc1_of(BASE),
        "other": acc1_of(OTHER, gap=0.05),
        "third": acc1_of(THIRD, gap=0.2),
    }
    for name, runs in sides.items():
        for run in runs:
            write_run(folder / f"{name}-{run['seed']}", variant=name, baseline="base", **run)
            asked[name, run["seed"]] = run["right"]
    return folder, asked


def values_asked(asked, name):
    """Return the tested measures of a variant by seed, from the right answers."""
    runs = {seed: right for (variant, seed), right in asked.items() if variant == name}
    return {
        "acc1": {seed: right[64] / IMAGES for seed, right in runs.items()},
        "scale_area": {seed: area(right) for seed, right in runs.items()},
        "scale_spread": {seed: (max(r.values()) - min(r.values())) / IMAGES for seed, r in runs.items()},
    }


@pytest.mark.parametrize("name", ["base", "other", "third"])
def test_means_and_intervals_over_seeds_equal_an_oracle(small, name):
    folder, asked = small
    found = studied(folder).variants[name]
    for measure, values in values_asked(asked, name).items():
        got, values = found.estimates[measure], list(values.values())
        sd = statistics.stdev(values)
        low, high = stats.t.interval(0.95, len(values) - 1, statistics.fmean(values), sd / len(values) ** 0.5)
        assert got.n == len(values)
        assert (got.mean, got.sd) == pytest.approx((statistics.fmean(values), sd))
        assert (got.low, got.high) == pytest.approx((low, high))
    for scale in (48, 64, 96):
        values = [right[scale] / IMAGES for (variant, _), right in asked.items() if variant == name]
        assert found.by_scale[scale].mean == pytest.approx(statistics.fmean(values))
        assert found.by_scale[scale].n == len(values)


def test_differences_and_p_are_paired_by_seed_and_adjusted_over_the_whole_family(small):
    folder, asked = small
    found = studied(folder)
    assert set(found.comparisons) == {"other", "third"}
    base, ps = values_asked(asked, "base"), {}
    for name in ("other", "third"):
        for measure, ours in values_asked(asked, name).items():
            seeds = sorted(ours.keys() & base[measure].keys())
            pair = [[side[seed] for seed in seeds] for side in (ours, base[measure])]
            test, got = stats.ttest_rel(*pair), found.comparisons[name][measure]
            low, high = test.confidence_interval(0.95)
            assert got.n == len(seeds)
            assert got.difference == pytest.approx(np.subtract(*pair).mean())
            assert got.low <= low < high <= got.high
            assert got.p >= test.pvalue - 1e-9
            ps[name, measure] = got.p
        # The gap has no answers to single training images: it has a difference, and no part in what stands.
        gap = found.comparisons[name]["generalization_gap"]
        assert gap.low is gap.p is gap.p_holm is None
        assert gap.difference == pytest.approx({"other": -0.05, "third": 0.1}[name])
    for (name, measure), p in by_holm(ps).items():
        assert found.comparisons[name][measure].p_holm == pytest.approx(p), (name, measure)


def test_gaps_below_zero_are_subtracted_as_they_are(tmp_path):
    for name, gap in (("base", 0.1), ("other", -0.05), ("third", -0.3)):
        write_run(tmp_path / name, variant=name, baseline="base", gap=gap)
    found = studied(tmp_path).comparisons
    gaps = {name: one["generalization_gap"].difference for name, one in found.items()}
    assert gaps == {"other": pytest.approx(-0.15), "third": pytest.approx(-0.4)}


def adds_by_image(folder, measure):
    """Return what each image adds to a run's measure, from its archive and by the measure's definition."""
    right = {scale: right_at(folder, scale) * 1.0 for scale in (48, 64, 96)}
    if measure == "acc1":
        return right[64]
    if measure == "scale_spread":
        return max(right.values(), key=np.mean) - min(right.values(), key=np.mean)
    logs = np.log([48, 64, 96])
    below, above = np.diff(logs) / 2 / np.ptp(logs)
    return below * right[48] + (below + above) * right[64] + above * right[96]


def test_what_decides_is_of_the_common_seeds_and_their_answers_image_by_image(small):
    folder, asked = small
    found = studied(folder)
    for name in ("other", "third"):
        seeds = sorted(seed for variant, seed in asked if variant == name and ("base", seed) in asked)
        for measure in ("acc1", "scale_area", "scale_spread"):
            arrays = [[adds_by_image(folder / f"{side}-{s}", measure) for s in seeds] for side in (name, "base")]
            by_image, got = np.subtract(*arrays), found.comparisons[name][measure]
            assert got.difference == pytest.approx(by_image.mean())  # so each image's part adds up to the summary's
            want = crossed(estimate(by_image.mean(axis=1).tolist()), by_image)
            assert (got.low, got.high, got.p) == pytest.approx(want, abs=1e-7)


@pytest.mark.usefixtures("no_plots")
def test_what_stands_is_what_other_images_may_show_too(tmp_path):
    for seed in range(5):
        # The variant is wrong on 5 images and right on 8 or 9 more, the same ones at every seed.
        for name, known in (("base", range(25)), ("other", range(5, 33 + seed % 2))):
            folder = write_run(tmp_path / f"{name}-{seed}", {64: len(known)}, seed=seed, variant=name, baseline="base")
            answers = answered({64: 0})
            answers.predicted[0, known] = answers.targets[known]
            answers.save(folder)
    write_sweep_report(tmp_path)
    got = json.loads((tmp_path / "summary.json").read_text())["comparisons"]["other"]["acc1"]
    assert got["difference"] == pytest.approx(3.4 / IMAGES)
    by_seed = [(3 + seed % 2) / IMAGES for seed in range(5)]
    assert stats.ttest_1samp(by_seed, 0).pvalue < 0.001  # on these images alone
    assert got["p_holm"] == got["p"] > 0.2
    row = next(row for row in (tmp_path / "summary.md").read_text().splitlines() if row.startswith("| other | top-1"))
    assert row.split("|")[8].strip() == "no"


@pytest.mark.usefixtures("no_plots")
def test_without_answers_to_the_same_images_at_every_seed_nothing_stands(tmp_path):
    for seed in range(3):
        for name, more in (("base", 0), ("other", 6 + seed)):
            right = {scale: count + more for scale, count in RIGHT.items()}
            write_run(tmp_path / f"{name}-{seed}", right, seed=seed, variant=name, baseline="base")
    assert studied(tmp_path).comparisons["other"]["acc1"].p is not None
    (tmp_path / "other-1" / "answers.npz").unlink()
    got = studied(tmp_path).comparisons["other"]["acc1"]
    assert (got.low, got.p, got.p_holm) == (None, None, None)
    assert got.difference == pytest.approx(7 / IMAGES)
    Answers.empty([64], np.zeros(IMAGES, np.int64), ["others"] * IMAGES).save(tmp_path / "other-1")
    assert studied(tmp_path).comparisons["other"]["acc1"].p is None
    write_sweep_report(tmp_path)
    assert "not over images unless every seed has predictions" in (tmp_path / "summary.md").read_text()


def test_seeds_with_other_images_are_compared_by_their_values(tmp_path):
    for seed in (0, 1):
        for name in ("base", "other"):
            write_run(tmp_path / f"{name}-{seed}", seed=seed, variant=name, images=IMAGES + seed)
    assert studied(tmp_path).comparisons["other"]["acc1"].n == 2


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 6])
@pytest.mark.usefixtures("no_plots")
def test_p_is_shown_from_three_seeds_on_and_below_the_report_says_why(tmp_path, seeds):
    for seed in range(seeds):
        write_run(tmp_path / f"base-{seed}", seed=seed, variant="base", baseline="base")
        more = {scale: count + 1 + seed for scale, count in RIGHT.items()}
        write_run(tmp_path / f"other-{seed}", more, seed=seed, variant="other", baseline="base")
    shown = write_sweep_report(tmp_path)
    got = json.loads((tmp_path / "summary.json").read_text())["comparisons"]["other"]["acc1"]
    assert got["n"] == seeds
    none = [got[key] is None for key in ("p", "p_holm", "low", "high")]
    assert none == [seeds < 3] * 4
    texts = ["\n".join(line for line in shown if isinstance(line, str)), (tmp_path / "summary.md").read_text()]
    texts.append((tmp_path / "report.html").read_text())
    why = f"{seeds} seed{'s'[: seeds - 1]} in common, 3 are needed"
    assert [why in text for text in texts] == [seeds < 3] * 3
    row = next(line for line in texts[1].splitlines() if line.startswith("| other | top-1 at 64"))
    dashes = [cell.strip() == "-" for cell in row.split("|")[5:-1]]
    assert dashes == [seeds < 3] * 4
    assert ["With fewer than 3 seeds there is no interval." in text for text in texts] == [seeds < 3] * 3
    said = next(line for line in texts[1].splitlines() if line.startswith("| base (baseline)"))
    assert ("±" in said) == (seeds >= 3)


@pytest.mark.usefixtures("no_plots")
def test_no_seed_in_common_is_said_too(tmp_path):
    write_run(tmp_path / "a", variant="base", seed=0)
    write_run(tmp_path / "b", variant="other", seed=1)
    write_sweep_report(tmp_path)
    assert "in common" in (tmp_path / "summary.md").read_text()


@pytest.mark.usefixtures("no_plots")
def test_why_there_is_no_p_is_said_once(pair):
    write_run(pair / "third-0", seed=0, variant="third")
    write_run(pair / "third-1", seed=1, variant="third")
    write_sweep_report(pair)
    assert (pair / "report.html").read_text().count("2 seeds in common, 3 are needed") == 1


@pytest.mark.usefixtures("no_plots")
def test_the_pixels_of_large_studies_are_plain_numbers(tmp_path):
    write_run(tmp_path / "large", variant="large", megapixels=41000.0)
    assert any(
        "at 123,000 megapixels (MP) seen" in line for line in write_sweep_report(tmp_path) if isinstance(line, str)
    )


def test_a_seed_that_is_there_twice_counts_once_or_is_refused(pair):
    shutil.copytree(pair / "other-1", pair / "other-1-copied")
    try:
        other = studied(pair).variants["other"]
    except ConfigError:
        return
    assert len(other.runs) == other.estimates["acc1"].n == other.by_scale[64].n == 2


# Equal compute


@pytest.mark.parametrize(
    ("megapixels", "equal", "share"),
    [
        (25.0, 0.1 + 0.1 * 5 / 25, 30 / 100),  # 30 of 100, a fifth of the way from 25 to 50
        (15.0, 0.2, 30 / 60),
        (15.1, 0.1 + 0.1 * 14.9 / 15.1, 30 / 60.4),
        (10.0, 0.3, 30 / 40),
        (7.5, RIGHT[64] / IMAGES, 1.0),  # as much as the cheapest run, so its end
        (30.01, 0.1, 30 / 120.04),  # the first measurement, within a thousandth
        (31.0, None, None),  # it comes too late
    ],
)
@pytest.mark.usefixtures("no_plots")
def test_equal_compute_is_read_between_the_measurements_around_what_the_cheapest_run_saw(
    tmp_path, megapixels, equal, share
):
    write_run(tmp_path / "cheap", variant="cheap", baseline="cheap", curve=(0.0, 0.0, 0.0), megapixels=10.0)
    write_run(tmp_path / "long", variant="long", curve=(0.1, 0.2, 0.3, 0.4), megapixels=megapixels)
    write_sweep_report(tmp_path)
    values = json.loads((tmp_path / "summary.json").read_text())
    assert values["equal_compute_megapixels"] == 30.0
    cheap, long = (values["variants"][name]["measures"] for name in ("cheap", "long"))
    names = ("acc1_equal_compute", "equal_compute_megapixels", "equal_compute_schedule")
    if equal is not None:
        assert long[names[0]]["mean"] == pytest.approx(equal)
    assert [cheap[name]["mean"] for name in names] == [RIGHT[64] / IMAGES, 30.0, 1.0]  # its end, from the summary
    if equal is None:
        assert not set(names) & set(long)
        return
    assert [long[name]["mean"] for name in names] == pytest.approx([equal, 30.0, share])
    for text in (tmp_path / "summary.md", tmp_path / "report.html"):
        assert f"30 MP, {share:.0%} of schedule" in text.read_text()


epochs = st.lists(st.tuples(st.floats(0.5, 30), st.floats(0, 0.05)), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(epochs, st.floats(0.01, 1), st.data())
def test_equal_compute_of_a_rising_curve_is_between_the_measurements_around_it(steps, part, data):
    pixels, rises = zip(*steps, strict=True)
    measured = data.draw(st.sets(st.integers(0, len(steps) - 1), min_size=1))
    seen, height = list(itertools.accumulate(pixels)), list(itertools.accumulate(rises))
    summary = {"scales": [{"scale": 64, "acc1": height[-1]}], "train_megapixels": seen[-1], "epochs": len(steps)}
    table = [{"epoch": str(e), "megapixels": str(p)} for e, p in enumerate(pixels)]
    gaps = [{"epoch": str(e), "scale": "64", "val_acc1": str(height[e])} for e in sorted(measured)]
    gaps += [row | {"scale": "48", "val_acc1": "1"} for row in gaps]
    budget = part * seen[-1]
    got = values_of(Run(Path(), {}, {}, summary, table, gaps, {}), 64, budget)
    curve = [(seen[e], height[e]) for e in sorted(measured | {len(steps) - 1})]
    before, after = [[one for one in curve if side(one[0], budget)] for side in (operator.le, operator.gt)]
    if not before and budget * 1.001 < curve[0][0]:
        assert "acc1_equal_compute" not in got
        return
    low, high = (before or curve)[-1 if before else 0], (after or curve)[0 if after else -1]
    way = (budget - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0
    assert low[1] - 1e-9 <= got["acc1_equal_compute"] <= high[1] + 1e-9
    assert got["acc1_equal_compute"] == pytest.approx(low[1] + way * (high[1] - low[1]), abs=1e-9)
    whole = sum(at <= budget for at in seen)
    assert whole - 1e-6 <= got["equal_compute_schedule"] * len(steps) <= whole + 1 + 1e-6


def test_equal_compute_with_a_restart_a_coarse_curve_and_no_curve(tmp_path):
    write_run(tmp_path / "cheap", variant="cheap", megapixels=10.0)
    for name in ("restart", "coarse", "none"):
        write_run(tmp_path / name, variant=name, curve=(0.1, 0.2, 0.3, 0.4), megapixels=10.0)
    for table in ("metrics.csv", "gap.csv"):  # killed in epoch 2, begun again: its rows are there twice
        header, *lines = (tmp_path / "restart" / table).read_text().splitlines()
        again = [line.replace("0.3,", "0.35,") if line.startswith("2,64") else line for line in lines if line[0] >= "2"]
        before = [line for line in lines if line[0] < "3"]
        (tmp_path / "restart" / table).write_text("\n".join([header, *before, *again]) + "\n")
    header, *lines = (tmp_path / "coarse" / "gap.csv").read_text().splitlines()
    (tmp_path / "coarse" / "gap.csv").write_text("\n".join([header, *(ln for ln in lines if ln[0] in "13")]) + "\n")
    (tmp_path / "none" / "gap.csv").unlink()
    found = {name: one.estimates for name, one in studied(tmp_path, "cheap").variants.items()}
    assert found["restart"]["acc1_equal_compute"].mean == 0.35
    end = RIGHT[64] / IMAGES
    assert found["coarse"]["acc1_equal_compute"].mean == pytest.approx((0.2 + end) / 2)  # of 20 and 40 megapixels
    assert "acc1_equal_compute" not in found["none"]
    assert found["none"]["acc1"].mean == RIGHT[64] / IMAGES


@pytest.mark.usefixtures("no_plots")
def test_variants_without_the_reference_scale_have_dashes(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"base-{seed}", seed=seed, variant="base", baseline="base")
        write_run(tmp_path / f"fixed-{seed}", {64: 28}, seed=seed, variant="fixed", **FIXED)
        elsewhere = FIXED | {"schedule": {"kind": "single", "scales": [128]}}
        write_run(tmp_path / f"large-{seed}", {128: 28}, seed=seed, variant="large", megapixels=50.0, **elsewhere)
    write_sweep_report(tmp_path)
    values = json.loads((tmp_path / "summary.json").read_text())
    assert set(values["comparisons"]["fixed"]) == {"acc1", "generalization_gap"}
    assert values["comparisons"]["large"] == {}
    lines = (tmp_path / "summary.md").read_text().split("\n\n")[2].splitlines()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:9]] for line in lines if "|" in line
    }
    assert rows["fixed"] == ["70.0 ± 0.0", "70.0 ± 0.0", "-", "-", "-", "10.0 ± 0.0"]
    assert rows["large"] == ["-"] * len(MEASURES)
    assert "Traceback" not in (tmp_path / "report.html").read_text()


# Variants and baselines


def some(folder, *runs):
    """Write unfinished runs, which have a config alone, and return them read back."""
    for number, run in enumerate(runs):
        write_run(folder / f"run-{number}", state="running", curve=(), **run)
    return read_runs(folder)


def named(runs):
    return {name: [run.seed for run in some] for name, some in variants(runs).items()}


def test_variants_are_named_by_the_sweep_by_what_differs_or_by_both(tmp_path):
    by_name = some(tmp_path / "a", *({"variant": v, "seed": s} for v in "xy" for s in (3, 4)))
    assert named(by_name) == {"x": [3, 4], "y": [3, 4]}
    levels = [
        {"model": {"levels": levels, "pool": "spp"}, "seed": seed} for levels in ([4, 2, 1], [1]) for seed in (0, 1)
    ]
    assert named(some(tmp_path / "b", *levels)) == {"model.levels=[4,2,1]": [0, 1], "model.levels=[1]": [0, 1]}
    both = [
        {"variant": "x", "optim": {"lr": 0.1}},
        {"variant": "x", "optim": {"lr": 0.2}, "model": {"hidden": [64, 32]}},
        {"variant": "y", "model": {"pool": "gap"}},
    ]
    assert list(named(some(tmp_path / "c", *both))) == [
        "x model.hidden=[] optim.lr=0.1", "x model.hidden=[64,32] optim.lr=0.2", "y",
    ]  # fmt: skip
    classes = [{"data": {"classes": classes}} for classes in (None, ["cat", "dog"])]
    assert list(named(some(tmp_path / "d", *classes))) == ["data.classes=None", "data.classes=[cat,dog]"]


def test_seeds_places_and_workers_make_no_variant(tmp_path):
    alike = [
        {"seed": 1, "data": {"num_workers": 0}},
        {"seed": 2, "data": {"num_workers": 4, "cache": "ram"}, "sweep_dir": "s", "logger": {"name": "tensorboard"}},
        {"seed": 3, "metrics": {"gap_images": 60}, "resume": "r"},
    ]
    assert named(some(tmp_path / "a", *alike)) == {"all runs": [1, 2, 3]}
    assert named(some(tmp_path / "b", {"seed": 5})) == {"all runs": [5]}


def test_runs_stand_in_the_order_of_their_sweep_and_then_of_their_names(tmp_path):
    some(tmp_path, *({"variant": v} for v in "abcd"))
    write_json(tmp_path / "sweep.json", {"jobs": {"run-2": {}, "gone": {}, "run-1": {}}})
    assert list(named(read_runs(tmp_path))) == ["c", "b", "a", "d"]


def test_a_baseline_is_the_first_the_named_or_the_given(tmp_path):
    plain = variants(some(tmp_path / "a", {"variant": "x"}, {"variant": "y"}))
    assert chosen_baseline(plain, ()) == "x"
    assert chosen_baseline(plain, ["y"]) == chosen_baseline(plain, ["y", "y"]) == "y"
    told = variants(some(tmp_path / "b", {"variant": "x", "baseline": "y"}, {"variant": "y", "baseline": "y"}))
    assert chosen_baseline(told, ()) == "y"
    assert chosen_baseline(told, ["x"]) == "x"
    two = variants(some(tmp_path / "c", {"variant": "x", "baseline": "x"}, {"variant": "y", "baseline": "y"}))
    assert chosen_baseline(two, ["y"]) == "y"
    for by_variant, asked, said in (
        (plain, ["zz"], "baseline 'zz' is not a variant here; allowed: x, y"),
        (plain, ["x", "y"], "two baselines, 'x' and 'y'; name one with sweep.baseline= or, in a report, --baseline"),
        (two, [], "two baselines, 'x' and 'y'; name one with sweep.baseline= or, in a report, --baseline"),
    ):
        with pytest.raises(ConfigError) as error:
            chosen_baseline(by_variant, asked)
        assert str(error.value) == said


@pytest.mark.usefixtures("no_plots")
def test_a_baseline_without_a_finished_run(tmp_path):
    write_run(tmp_path / "a", variant="base", baseline="base", state="running")
    write_run(tmp_path / "b", variant="other", baseline="base")
    shown = write_sweep_report(tmp_path)
    assert "a: running" in shown
    assert "no run of the baseline 'base' has finished yet: compared with 'other' for now" in shown
    with pytest.raises(ConfigError, match="baseline 'base' has no finished run"):
        studied(tmp_path)
    assert json.loads((tmp_path / "b" / "summary.json").read_text())  # and the runs are as they were
    assert "/report.html" in write_sweep_report(tmp_path, ["other"])[-1]


# Files


@pytest.mark.usefixtures("no_plots")
def test_summary_csv_does_not_know_seconds_places_or_the_order_of_files(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    runs = [("base", 0), ("base", 1), ("other", 1), ("other", 0)]
    for number, (name, seed) in enumerate(runs):
        write_run(first / f"{name}-{seed}", seed=seed, variant=name, seconds=10.0 + number)
    for number, (name, seed) in enumerate(reversed(runs)):
        write_run(second / f"{name}-{seed}", seed=seed, variant=name, seconds=99.0 - number)
    for folder in (first, second):
        write_run(folder / "broken", variant="other", seed=2, state="failed", error="out of luck")
    texts = []
    for folder in (first, second):
        write_sweep_report(folder)
        texts.append((folder / "summary.csv").read_text())
        listed = Path.iterdir
        monkeypatch.setattr(Path, "iterdir", lambda self, listed=listed: sorted(listed(self), reverse=True))
    assert texts[0] == texts[1]
    rows = list(csv.DictReader(texts[0].splitlines()))
    assert [(row["variant"], row["seed"], row["state"]) for row in rows] == [
        ("base", "0", "finished"), ("base", "1", "finished"),
        ("other", "0", "finished"), ("other", "1", "finished"), ("other", "2", "failed"),
    ]  # fmt: skip
    assert [row["acc1@64"] for row in rows] == ["0.75"] * 4 + [""]
    assert rows[0]["train_megapixels"] == "30.0"
    assert not [column for column in rows[0] if "second" in column]


@pytest.mark.usefixtures("no_plots")
def test_a_report_is_of_what_is_there_and_changes_no_run(tmp_path):
    folder = two_by_two(tmp_path / "s")
    write_run(folder / "boom", variant="other", seed=2, state="failed", error="no memory left")
    write_run(folder / "slow", variant="other", seed=3, state="running")
    write_run(folder / "halted", variant="other", seed=4, state="interrupted")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    write_json(folder / "sweep.json", {"command": "train.py -m all", "jobs": {"boom": {}, "never": {}}})
    before = {path: path.read_bytes() for path in folder.rglob("*/*") if path.is_file()}
    shown = [line for line in write_sweep_report(folder) if isinstance(line, str)]
    assert {path: path.read_bytes() for path in folder.rglob("*/*") if path.is_file()} == before
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "summary.csv", "summary.json", "summary.md", "report.html", "sweep.json",
    }  # fmt: skip
    page, markdown = (folder / "report.html").read_text(), (folder / "summary.md").read_text()
    for said in ("boom: failed: no memory left", "slow: running", "halted: interrupted"):
        assert said in shown
        assert said in markdown
        assert said in page
    assert "    the last line" in shown
    assert [text.count("not started") for text in ("\n".join(shown), markdown, page)] == [1, 1, 1]
    for said in ("4 of 8 runs finished", "still running", "never", "train.py -m all", "the last line"):
        assert said in page
    values = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert values["states"] == {"failed": 1, "finished": 4, "interrupted": 1, "running": 1}
    assert values["missing"] == ["never"]


@pytest.mark.usefixtures("no_plots")
def test_a_folder_that_never_became_a_run_is_listed(pair):
    (pair / "other-1" / "status.json").unlink()
    write_json(pair / "sweep.json", {"jobs": {"base-0": {}, "other-1": {}}})
    write_sweep_report(pair)
    assert "other-1" in (pair / "report.html").read_text()


@pytest.mark.usefixtures("no_plots")
def test_markdown_tables_are_square(pair):
    write_run(pair / "bar", variant="a|b", seed=0)
    write_sweep_report(pair)
    for part in (pair / "summary.md").read_text().split("\n\n"):
        if part.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in part.splitlines()}) == 1, part


JUNK = bytes(range(256)) * 3
TORN, GONE = "the first two thirds of the file", "no file"


def damage(path, content):
    whole = path.read_bytes()
    path.unlink()
    if content != GONE:
        path.write_bytes(whole[: len(whole) * 2 // 3] if content == TORN else content)


DAMAGES = [
    *itertools.product(("status.json", "summary.json", "mistakes.json"), (b"", TORN, JUNK, b"[1]")),
    *itertools.product(("metrics.csv", "gap.csv"), (b"", TORN, b"\0" * 99)),
    *itertools.product(("answers.npz", "config.yaml"), (b"", JUNK, b"\0" * 99)),
    *itertools.product(
        ("metrics.csv", "gap.csv", "mistakes.json", "answers.npz", "summary.json", "train.log"), (GONE,)
    ),
    ("config.yaml", TORN),
    ("train.log", JUNK),
    ("metrics.csv", JUNK),
    ("gap.csv", JUNK),
    ("gap.csv", b"x,y\n1,2\n"),
    ("gap.csv", b"epoch,scale,train_acc1,val_acc1,gap\n1,64,,,\n"),
    ("config.yaml", b"when: 2001-99-99\n"),
]
IN_A_SWEEP = [
    ("config.yaml", b"seed: null\n"),
    ("config.yaml", b"sweep: text\n"),
    ("config.yaml", b"on: push\n"),
    ("config.yaml", b"seed: 1\n"),
    ("summary.json", b'{"states": {}}'),
]


def told(call, *arguments):
    """Return what a call gives, and the error that it ends with where that is one of the package's."""
    try:
        return call(*arguments), None
    except SppclsError as error:
        return None, str(error)


@pytest.mark.parametrize(("name", "content"), DAMAGES + IN_A_SWEEP)
@pytest.mark.usefixtures("no_plots")
def test_a_damaged_file_costs_its_own_part_or_is_one_line(pair, name, content):
    damage(pair / "other-1" / name, content)
    shown, error = told(write_sweep_report, pair)
    if error is not None:
        assert name == "config.yaml"
        assert "other-1" in error
        assert name in error
        assert "\n" not in error
        return
    found = json.loads((pair / "summary.json").read_text())["variants"]
    assert found["base"]["seeds"] == [0, 1]
    if name == "config.yaml":  # what it holds is a config, whatever variant that is
        return
    finished = name not in ("status.json", "summary.json")
    assert found["other"]["seeds"] == [0, 1][: 1 + finished]
    named = not finished or (name == "answers.npz" and content != GONE)
    assert any(isinstance(line, str) and line.startswith("other-1: ") for line in shown) == named


@pytest.mark.parametrize(("name", "content"), DAMAGES)
@pytest.mark.usefixtures("no_plots")
def test_a_run_with_a_damaged_file_has_a_page_or_is_one_line(pair, name, content):
    run = pair / "base-0"
    damage(run / name, content)
    status, error = told(report, str(run))
    if error is not None:
        assert name == "config.yaml"
        assert name in error
        assert "\n" not in error
        return
    assert status == 0
    assert "Environment" in (run / "report.html").read_text()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("no_plots")
def test_an_archive_that_is_cut_off_is_named_and_costs_its_part(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    damage(run / "answers.npz", TORN)
    assert report(run) == 0
    assert "run: answers.npz is damaged" in capsys.readouterr().out


def test_a_row_that_was_torn_and_written_on_is_left_out(pair):
    header, first, second, *rest = (pair / "base-0" / "gap.csv").read_text().splitlines()
    (pair / "base-0" / "gap.csv").write_text("\n".join([header, first, second[:9] + second, *rest]) + "\n")
    run = next(run for run in read_runs(pair) if run.folder.name == "base-0")
    assert all(0 <= float(row["val_acc1"]) <= 1 for row in run.gaps)


def as_first_version(values):
    """Take from a summary what version 0.1.0 did not write."""
    for key in ("gaps", "train_megapixels", "data_costs", "scale_area", "worst_scale", "agreement", "gap_seconds"):
        del values[key]
    for row in values["scales"]:
        del row["acc1_low"], row["acc1_high"]


@pytest.mark.usefixtures("no_plots")
def test_a_run_of_the_first_version_has_a_page_and_tables(tmp_path):
    run = write_run(tmp_path / "run")
    edit(run / "summary.json", as_first_version)
    assert report(run) == 0
    assert "| 64 (trained) | 75.0% | - to - |" in (run / "summary.md").read_text()
    assert "top-1 at scale 64" in (run / "report.html").read_text()


@pytest.mark.parametrize("old", ["other-1", "base-*", "*"])
@pytest.mark.usefixtures("no_plots")
def test_a_sweep_with_runs_of_the_first_version_has_what_they_have(pair, old):
    for path in pair.glob(f"{old}/summary.json"):
        edit(path, as_first_version)
    write_sweep_report(pair)
    found = json.loads((pair / "summary.json").read_text())
    assert found["comparisons"]["other"]["acc1"]["difference"] == pytest.approx(2 / IMAGES)


def test_a_sweep_without_a_gap_has_a_page(pair):
    def without(values):
        values["generalization_gap"] = None
        del values["gaps"], values["train_acc1"]

    for run in pair.iterdir():
        (run / "gap.csv").unlink()
        edit(run / "summary.json", without)
    write_sweep_report(pair)
    page = (pair / "report.html").read_text()
    assert "Accuracy by test scale" in page
    assert "gap at scale" not in page


@pytest.mark.usefixtures("no_plots")
def test_a_sweep_without_validation_images_says_what_it_can(pair):
    def without(values):
        values |= {"acc1": None, "generalization_gap": None, "scales": []}
        for key in (
            "gaps",
            "train_acc1",
            "scale_area",
            "scale_spread",
            "scale_consistency",
            "worst_scale",
            "agreement",
        ):
            del values[key]

    for run in pair.iterdir():
        for name in ("gap.csv", "answers.npz", "mistakes.json"):
            (run / name).unlink()
        edit(run / "summary.json", without)
    write_sweep_report(pair)
    assert "| other | 2 | - | - | - | - | - | - | - | 30 |" in (pair / "summary.md").read_text()
    assert report(pair / "base-0") == 0


# The page

CLASS = "<img src=x onerror=alert(1)>"
ERROR = "</pre><script>alert(1)</script>"
VARIANT = 'a<b>&"c'
VOID = {"meta", "link", "br", "img", "hr", "input", "col", "source", "area", "base", "embed", "track", "wbr"}
ASKING = {"src", "href", "xlink:href", "srcset", "action", "formaction", "data", "poster", "background", "ping"}


class Page(HTMLParser):
    """A page's tags in order, its text, and what is wrong with how they are nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.wrong, self.tags, self.text, self.attributes = [], [], [], "", []
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    """Write and report a sweep of 12 jobs, two of them not finished, with 12 thumbnails each and names meant badly."""
    folder = tmp_path_factory.mktemp("sweeps") / "a <b> sweep"
    common = {"classes": ("cat", CLASS, "owl"), "thumbnails": ["x" * 7000] * 12}
    for seed in range(5):
        write_run(folder / f"base-{seed}", seed=seed, variant="base", baseline="base", **common)
        more = {scale: count + seed for scale, count in RIGHT.items()}
        write_run(folder / f"other-{seed}", more, seed=seed, variant=VARIANT, megapixels=20.0, **common, **SINGLE)
    write_run(folder / "boom", variant=VARIANT, seed=5, state="failed", error=ERROR, **SINGLE)
    (folder / "boom" / "train.log").write_text(f"{ERROR}\n")
    write_run(folder / "slow", variant="base", seed=5, state="running")
    write_json(folder / "sweep.json", {"command": "train.py -m <all>", "jobs": {"<never>": {}}})
    write_sweep_report(folder)
    return folder


@pytest.fixture(scope="module")
def pages(sweep_folder):
    """Return the text of the sweep's page, of a finished run's and of the failed run's."""
    for name in ("other-0", "boom"):
        assert report(sweep_folder / name) == 0
    places = {"sweep": sweep_folder, "run": sweep_folder / "other-0", "failed": sweep_folder / "boom"}
    return {name: (place / "report.html").read_text() for name, place in places.items()}


@pytest.mark.parametrize("name", ["sweep", "run", "failed"])
def test_a_page_is_whole_and_asks_nobody(pages, name):
    text, page = pages[name], Page(pages[name])
    assert page.wrong == []
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    asked = [(tag, value) for tag, attribute, value in page.attributes if attribute in ASKING]
    assert [one for one in asked if not one[1].startswith(("data:", "#"))] == []
    assert [attribute for _, attribute, _ in page.attributes if attribute.startswith("on")] == []
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text).replace("http-equiv", "")
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "color-scheme: light dark" in text
    assert "width=device-width" in text
    assert len(text.encode()) < 3e6


@pytest.mark.parametrize("name", ["sweep", "run", "failed"])
def test_behind_every_plot_is_a_table(pages, name):
    tags = [tag for tag in Page(pages[name]).tags if tag in ("svg", "table")]
    plots = [after for tag, after in itertools.pairwise([*tags, None]) if tag == "svg"]
    assert plots == ["table"] * {"sweep": 5, "run": 4, "failed": 3}[name]


def test_names_and_errors_are_text(pages):
    for name, said in (
        ("sweep", ["a <b> sweep", CLASS, ERROR, VARIANT, "train.py -m <all>", "<never>"]),
        ("run", [CLASS, VARIANT]),
        ("failed", [ERROR]),
    ):
        page = Page(pages[name])
        assert [text for text in said if text not in page.text] == []
        assert ("img", "src", "x") not in page.attributes
        assert page.tags.count("img") == {"sweep": 12, "run": 12, "failed": 0}[name]


def test_the_page_of_a_sweep_has_its_parts(pages):
    text = Page(pages["sweep"]).text
    for said in (
        "10 of 13 runs finished", "Some are still running: this page shows the results so far.", "slow: running",
        "Accuracy by test scale", "dotted: training scales", "at equal compute",
        "Compared with base, paired by seed", "Generalization gap", "Cost against accuracy", "padding",
        "aspect changed by",
        "Confusion of base", "Most confident mistakes of base, seed 0", "boom failed", "python 3.11.7", "cores: 2",
        FOUND_ELSEWHERE["command"], "schedule.kind",
    ):  # fmt: skip
        assert said in text, said
    rows = re.findall(r"<tr><td>(base|other)-(\d)</td><td>(\w+)</td>", pages["sweep"])
    assert rows == [(name, str(seed), "finished") for name in ("base", "other") for seed in range(5)]


def test_the_pages_of_runs_have_the_parts_that_make_sense(pages):
    text = Page(pages["run"]).text
    for said in ("top-1 at scale 64", "Training, validation and the gap", "padding", "Confusion", "photos/3.jpg",
                 "Most confident mistakes", "config.yaml", "python 3.11.7", FOUND_ELSEWHERE["command"]):  # fmt: skip
        assert said in text, said
    failed = Page(pages["failed"]).text
    assert "No summary yet" in failed
    assert "Confusion" not in failed


def test_numbers_of_the_page_are_those_of_summary_json(sweep_folder, pages):
    found = json.loads((sweep_folder / "summary.json").read_text())
    text = Page(pages["sweep"]).text
    for variant in found["variants"].values():
        for one in variant["scales"].values():
            assert f"{one['mean']:.1%} ({one['low'] * 100:.1f} to {one['high'] * 100:.1f})" in text
    one = found["comparisons"][VARIANT]["acc1"]
    assert f"{one['low'] * 100:+.1f} to {one['high'] * 100:+.1f}" in text
    ps = {name: test["p"] for name, test in found["comparisons"][VARIANT].items() if test["p"]}
    assert one["p_holm"] == pytest.approx(by_holm(ps)["acc1"])
    assert "a difference is significant if that is <= 0.05" in text


@pytest.mark.parametrize("names", [[f"variant-number-{n}" for n in range(48)], [f"{'long ' * 22}{n}" for n in (1, 2)]])
def test_many_and_long_names_leave_room_for_the_plots(names):
    dots = plots.dot_plot(dict.fromkeys(names, (0.1, 0.05, 0.15)), x="gap")
    curves = {name: plots.Curve([(48, 0.5), (64, 0.6)]) for name in names}
    lines = plots.line_plot(curves, x="scale", y="top-1", log=True)
    # No room would be a warning, which is an error here; and each name is in the drawing, wrapped or not.
    for svg in (dots, lines):
        assert svg.startswith("<svg")
        assert all(name.split()[0] in svg for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "größe",
        "50%",
        "a$b",
        ("_old"),
        ("大"),
        ("$\\x$"),
    ],
)
def test_any_name_can_stand_in_a_plot(name):
    curves = {text: plots.Curve([(48, 0.5), (64, 0.6)]) for text in (name, "other")}
    assert f">{name}<" in plots.line_plot(curves, x="scale", y="top-1")


@pytest.mark.usefixtures("no_plots")
def test_a_baseline_that_is_a_list_is_shown_as_it_is(tmp_path, capsys):
    for number, classes in enumerate((["cat", "dog"], ["cat", "owl"])):
        write_run(tmp_path / f"run-{number}", data={"classes": classes})
    show(*write_sweep_report(tmp_path))
    assert "Compared with data.classes=[cat,dog], paired by seed" in capsys.readouterr().out


@pytest.mark.usefixtures("no_plots")
def test_an_error_is_shown_as_it_is(pair, capsys):
    write_run(pair / "boom", variant="other", seed=2, state="failed", error="[red]a:x:b[/red] [/b]")
    show(*write_sweep_report(pair))
    assert "boom: failed: [red]a:x:b[/red] [/b]" in capsys.readouterr().out


# Confusion


def said(targets, predicted, scale=64):
    answers = Answers.empty([scale], np.array(targets))
    answers.predicted[0] = predicted
    return answers


def test_a_small_confusion_by_hand():
    first = said([0, 0, 0, 0, 1, 1, 2], [0, 0, 1, -1, 1, 0, -1])
    second = said([0, 1], [2, 1])
    found = confusion([first, second, said([2], [0], scale=96)], ["cat", "dog", "owl", "elk"], 64)
    assert found["names"] == ["cat", "dog", "owl", "elk"]
    assert found["rows"] == [[0.5, 0.25, 0.25, 0], [pytest.approx(1 / 3), pytest.approx(2 / 3), 0, 0], [0] * 4, [0] * 4]
    assert found["pairs"] == [
        ["dog", "cat", "1 of 3", "33.3%"],
        ["cat", "dog", "1 of 4", "25.0%"],
        ["cat", "owl", "1 of 4", "25.0%"],
    ]
    assert found["counts"] == [4, 3, 0, 0]
    assert found["classes"] == [["cat", "4", "2", "50.0%"], ["dog", "3", "2", "66.7%"]]
    assert found["note"] == ""
    assert confusion([first], ["cat", "dog", "owl"], 96) is None
    assert confusion([said([0, 1], [-1, -1])], ["cat", "dog"], 64) is None


@pytest.mark.parametrize(("classes", "wrong"), [(21, 0.3), (102, 0.4), (102, 1.0), (102, 0.05), (102, 0.0)])
def test_of_many_classes_the_matrix_is_of_twenty(classes, wrong):
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(classes), 10)
    targets = targets[targets != 7]  # a class without an image
    predicted = np.where(rng.random(len(targets)) < wrong, rng.integers(0, classes, len(targets)), targets)
    found = confusion([said(targets, predicted)], [f"c{index}" for index in range(classes)], 64)
    assert len(found["names"]) == len(set(found["names"])) == len(found["rows"]) == MOST
    assert found["note"] == f"The 20 of {classes} classes that are confused most."
    for name, count, row in zip(found["names"], found["counts"], found["rows"], strict=True):
        answers = predicted[targets == int(name[1:])]
        assert count == len(answers)
        assert row == pytest.approx([(answers == int(to[1:])).sum() / max(count, 1) for to in found["names"]])
    assert len(found["classes"]) == classes - 1


def test_the_twenty_classes_are_those_that_are_confused_most():
    """Of every second of the first 30 classes half of the images are taken for the next class."""
    targets = np.repeat(np.arange(40), 10)
    predicted = np.where((targets % 2 == 0) & (targets < 30) & (np.tile(np.arange(10), 40) < 5), targets + 1, targets)
    predicted[4 * 10 : 4 * 10 + 9] = 39  # and of one, nine of ten for the last
    found = confusion([said(targets, predicted)], [f"c{index}" for index in range(40)], 64)
    assert {"c4", "c39"} < set(found["names"]) <= {f"c{n}" for n in (*range(30), 39)}
    assert found["pairs"][0] == ["c4", "c39", "9 of 10", "90.0%"]
    assert found["pairs"][1][2:] == ["5 of 10", "50.0%"]


# Formats


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=3))
keys = st.text("abc_", min_size=1, max_size=3)
groups = st.dictionaries(keys, leaves | st.dictionaries(keys, leaves, max_size=3), max_size=3)
trees = st.dictionaries(keys, leaves | groups, max_size=4)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_flat_keys_lead_back_to_the_values(tree):
    found = flat(tree)
    for key, value in found.items():
        place = tree
        for part in key.split("."):
            place = place[part]
        assert place == value
    count = lambda value: sum(map(count, value.values())) if isinstance(value, dict) and value else 1  # noqa: E731
    assert len(found) == (count(tree) if tree else 0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1))
def test_a_number_is_read_back_to_a_digit(mean, half):
    assert float(percent(mean)[:-1]) == pytest.approx(mean * 100, abs=0.0501)
    assert float(points(mean)) == pytest.approx(mean * 100, abs=0.0501)
    assert points(mean)[0] in "+-"
    said = interval(Estimate(mean, 0.1, mean - half, mean + half, 3)).split(" ± ")
    assert [float(part) for part in said] == [pytest.approx(value * 100, abs=0.0501) for value in (mean, half)]
    assert interval(Estimate(mean, None, None, None, 1)) == percent(mean)[:-1]


def test_what_is_not_there_is_a_dash():
    assert percent(None) == points(None) == interval(None) == "-"
    assert set(TESTED) <= set(MEASURES)


# The command


@pytest.fixture
def command(capsys):
    """Run ``sppcls report`` and return its exit status and what it said on both streams."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            commands.main(["report", *map(str, arguments)])
        told = capsys.readouterr()
        return end.value.code, told.out, told.err

    return call


def test_wrong_folders_and_baselines_are_one_line(tmp_path, command):
    folder = two_by_two(tmp_path / "s")
    write_run(tmp_path / "two" / "a", variant="a", baseline="a")
    write_run(tmp_path / "two" / "b", variant="b", baseline="b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "foreign" / "src").mkdir(parents=True)
    (tmp_path / "foreign" / "config.yaml").write_text("name: theirs\n")
    for arguments, words in (
        (["empty"], "empty has no runs: neither it nor a folder in it has config.yaml and status.json"),
        (["foreign"], "foreign has no runs"),
        (["file"], "file is not a folder; name a run or a sweep"),
        (["nowhere"], "nowhere does not exist"),
        (["s/base-0", "--baseline", "base"], "base-0 is a single run; leave it out"),
        (["s", "--baseline", "base", "--baseline", "other"], "two baselines, 'base' and 'other'"),
        (["s", "--baseline", "othr"], "baseline 'othr' is not a variant here; did you mean 'other'?"),
        (["two"], "two baselines, 'a' and 'b'; name one with sweep.baseline= or, in a report, --baseline"),
        ([], "required: DIR"),
    ):
        status, out, err = command(*(tmp_path / arguments[0], *arguments[1:]) if arguments else ())
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ")
        assert words in err
    assert [path.name for path in folder.iterdir() if path.is_file()] == []  # and nothing is written


@pytest.mark.usefixtures("no_plots")
def test_the_command_writes_and_shows_a_sweep_and_a_run(tmp_path, command):
    folder = two_by_two(tmp_path / "s")
    status, out, err = command(folder, "--baseline", "other")
    assert (status, err) == (0, "")
    for words in ("Compared with other, paired by seed", "-5.0", "2 seeds in common, 3 are needed", "report: "):
        assert words in out, out
    before = (folder / "base-0" / "summary.json").read_bytes()
    status, out, err = command(folder / "base-0")
    assert (status, out.startswith("report: "), err) == (0, True, "")
    assert {"summary.csv", "summary.md", "report.html"} <= {path.name for path in (folder / "base-0").iterdir()}
    assert (folder / "base-0" / "summary.json").read_bytes() == before
    rows = list(csv.DictReader((folder / "base-0" / "summary.csv").read_text().splitlines()))
    assert [(row["scale"], row["acc1"]) for row in rows] == [("48", "0.5"), ("64", "0.75"), ("96", "0.6")]


@pytest.mark.usefixtures("no_plots")
def test_a_sweep_copied_elsewhere_has_the_same_report(small, tmp_path):
    shutil.copytree(small[0], tmp_path / "copied")
    shutil.copytree(small[0], tmp_path / "again")
    for place in ("copied", "again"):
        write_sweep_report(tmp_path / place)
    for name in ("summary.csv", "summary.json"):
        assert (tmp_path / "copied" / name).read_text() == (tmp_path / "again" / name).read_text()


def test_the_report_says_where_variants_have_other_steps(tmp_path):
    def steps(by, classes):
        return {"by": by, "parts": 5 if by == "aspect" else 1, "classes": classes, "classes_random": 8.5}

    def noted(**kinds):
        folder = tmp_path / "-".join(kinds)
        runs = {}
        for name, mixing in kinds.items():
            runs[name] = [read_run(write_run(folder / f"{name}-{n}", seed=n, mixing=mixing)) for n in (0, 1)]
        return [line for line in sweep_page.notes(study(runs, next(iter(kinds)))) if line.startswith("Steps")]

    (same,) = noted(keep=steps("aspect", 6.1), gap=steps("aspect", 6.1))
    assert same == "Steps of keep, gap: images by aspect, in 5 parts, 6.1 classes in each."
    (other,) = noted(keep=steps("aspect", 3.4), warp=steps("random", 8.4))
    assert other.startswith("Steps differ, and so may what is learned from them: keep: images by aspect")
    assert "warp: any images, 8.4 classes" in other
    assert noted(old=None) == []
