"""Factors of a study: main effects and interactions equal an oracle, and are none where they cannot be separated."""

import itertools

import numpy as np
import pytest
from test_report import IMAGES, adds_by_image, studied, write_run

from sppcls.measure.statistics import crossed, estimate
from sppcls.report.factors import cells, contrasts, effects
from sppcls.report.plots import Curve
from sppcls.report.sweep_figures import _front
from sppcls.report.sweep_page import write_sweep_report
from sppcls.report.verdicts import verdicts

MODES, LEVELS = ("max", "avg"), ([4, 2, 1], [2, 1], [1])
SEEDS = (0, 1, 2)
FACTORS = ["model.mode", "model.levels"]


def right_of(mode, levels, seed):
    """Right answers: the average costs 3 images, and 2 more with one level; one level costs 1."""
    lost = 3 * (mode == "avg") + (levels == [1]) * (1 + 2 * (mode == "avg")) - seed
    return {48: 20 - lost, 64: 30 - lost, 96: 24 - lost}


def name_of(mode, levels):
    return f"{mode}-{len(levels)}"


def written(folder, leave_out=()):
    for mode, levels, seed in itertools.product(MODES, LEVELS, SEEDS):
        name = name_of(mode, levels)
        if name in leave_out:
            continue
        sweep = {"variant": name, "baseline": "max-3", "factors": FACTORS}
        model = {"mode": mode, "levels": levels}
        write_run(folder / f"{name}-{seed}", right_of(mode, levels, seed), seed=seed, sweep=sweep, model=model)
    return folder


@pytest.fixture(scope="module")
def factorial(tmp_path_factory):
    return written(tmp_path_factory.mktemp("factorial"))


def mean_over_images(folder, measure, weights):
    """The contrast by seed and image, summed cell by cell."""
    return np.stack([
        sum(w * adds_by_image(folder / f"{name_of(*cell)}-{seed}", measure) for cell, w in weights) for seed in SEEDS
    ])  # fmt: skip


def test_effects_are_means_of_differences_of_cells(factorial):
    found = effects(studied(factorial, "max-3"))
    both, two = LEVELS[0], LEVELS[2]
    expected = {
        "model.mode max to avg": [(("avg", at), 1 / 3) for at in LEVELS] + [(("max", at), -1 / 3) for at in LEVELS],
        "model.levels [4, 2, 1] to [1]": [((m, two), 1 / 2) for m in MODES] + [((m, both), -1 / 2) for m in MODES],
        "model.mode max to avg and model.levels [4, 2, 1] to [1]": [
            (("avg", two), 1), (("avg", both), -1), (("max", two), -1), (("max", both), 1),
        ],
    }  # fmt: skip
    others = {"model.levels [4, 2, 1] to [2, 1]", "model.mode max to avg and model.levels [4, 2, 1] to [2, 1]"}
    assert found.keys() == expected.keys() | others
    for name, weights in expected.items():
        for measure in ("acc1", "scale_area"):
            by_image, got = mean_over_images(factorial, measure, weights), found[name][measure]
            assert got.difference == pytest.approx(by_image.mean())
            if got.p is not None:
                want = crossed(estimate(by_image.mean(axis=1).tolist()), by_image)
                assert (got.low, got.high, got.p) == pytest.approx(want, abs=1e-7)
    said = {name: of["acc1"].difference * IMAGES for name, of in found.items()}
    assert said["model.mode max to avg"] == pytest.approx(-(3 + 2 / 3))
    assert said["model.levels [4, 2, 1] to [1]"] == pytest.approx(-2)
    assert said["model.mode max to avg and model.levels [4, 2, 1] to [1]"] == pytest.approx(-2)
    assert said["model.mode max to avg and model.levels [4, 2, 1] to [2, 1]"] == pytest.approx(0)


def test_the_weights_of_every_contrast_sum_to_nothing():
    every = {cell: "".join(cell) for cell in itertools.product("xy", "123", "pq")}
    found = list(contrasts(3, every, ("x", "1", "p")))
    assert len(found) == (1 + 2 + 1) + (2 + 1 + 2)
    for changed, weights in found:
        assert sum(weights.values()) == pytest.approx(0)
        assert sum(w for w in weights.values() if w > 0) == pytest.approx(len(changed))


def test_without_every_combination_there_are_no_effects(tmp_path):
    found = studied(written(tmp_path, leave_out=("avg-1",)), "max-3")
    assert cells(found) == ([], {})
    assert effects(found) == {}


def test_the_report_has_a_table_of_effects(factorial):
    write_sweep_report(factorial)
    page, text = (factorial / "report.html").read_text(), (factorial / "summary.md").read_text()
    for whole in (page, text):
        assert "Effects of each factor" in whole
        assert "model.mode max to avg and model.levels" in whole


def test_the_report_says_each_difference_in_words(factorial):
    said = verdicts(studied(factorial, "max-3"))
    assert any(line.startswith("avg-1 is 15.0 points below max-3 at scale 64 (") for line in said)
    assert len(said) == 2 * 5
    assert said[0] in (factorial / "summary.md").read_text().replace("\\", "")


def test_the_front_is_of_the_means_that_nothing_cheaper_reaches():
    def curve(*points):
        return Curve(list(points), "")

    every = {"a": curve((1, 0.5), (3, 0.7)), "b": curve((2, 0.4)), "c": curve((4, 0.9)), "d": curve((5, 0.8))}
    assert _front(every).points == [(2, pytest.approx(0.6)), (4, 0.9)]
