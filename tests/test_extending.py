"""The examples of docs/extending.md, each used as another package's by the program itself."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from sppcls.data.schedule import Schedule
from sppcls.errors import ConfigError

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
POINTS = re.findall(r'entry-points\."(sppcls\.\w+)"\]\nmine = "[\w.]+:(\w+)"', PAGE)


@pytest.fixture
def installed(monkeypatch):
    """Install what the page shows, each under the name ``mine``."""
    made = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(block, made)
    groups = {
        group: [SimpleNamespace(name="mine", load=lambda name=name: made[name], dist=None)] for group, name in POINTS
    }
    monkeypatch.setattr("sppcls.plugins.entry_points", lambda group: groups.get(group, []))
    return made


@pytest.mark.usefixtures("installed")
def test_a_run_with_all_of_them(train, tmp_path):
    given = ["data=folder", "data.name=mine", "data.train_size=32", "data.val_size=16", "data.num_workers=0"]
    given += [
        "data.batch_size=8",
        "model.backbone=mine",
        "model.width=0.25",
        "model.levels=[2,1]",
        "schedule.kind=mine",
    ]
    given += ["schedule.scales=[40,32]", "trainer.max_epochs=2", "metrics.test_scales=[32,40]", "run_dir=run"]
    assert train(*given) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    epochs = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    assert [row[epochs[0].index("scale")] for row in epochs[1:]] == ["32", "40"]
    assert (summary["classes"], summary["train_images"], summary["val_images"]) == (2, 32, 16)
    assert max(row["acc1"] for row in summary["scales"]) <= summary["measures"]["mine"] <= 1


def test_a_schedule_that_gives_another_scale_is_refused(monkeypatch):
    made = SimpleNamespace(name="mine", load=lambda: lambda *_: 48, dist=None)
    monkeypatch.setattr("sppcls.plugins.entry_points", lambda **_: [made])
    with pytest.raises(ConfigError, match=r"schedule.kind=mine gave 48 for epoch 1; it must return one of \(32, 40\)"):
        Schedule("mine", (32, 40)).scales_of(0, 1)


@pytest.mark.parametrize(
    ("setting", "said"),
    [("data.name=mine", "data.name=mine is unknown"), ("schedule.kind=mine", "schedule.kind=mine is unknown")],
)
def test_what_is_not_installed_is_refused(train, capsys, setting, said):
    assert train(setting) == 2
    assert said in capsys.readouterr().err


def installing(monkeypatch, group, made):
    points = {f"sppcls.{group}": [SimpleNamespace(name="mine", load=lambda: made, dist=SimpleNamespace(name="theirs"))]}
    monkeypatch.setattr("sppcls.plugins.entry_points", lambda group: points.get(group, []))


def test_a_package_that_fails_is_named(monkeypatch):
    installing(monkeypatch, "schedules", lambda *_: 1 // 0)
    with pytest.raises(ConfigError, match=r"schedule.kind=mine \(package theirs\) failed: ZeroDivisionError: integer"):
        Schedule("mine", (32, 40)).scales_of(0, 1)


@pytest.mark.parametrize("made", [lambda _: 1 // 0, lambda _: {}, lambda _: float("nan")])
def test_a_measure_that_fails_loses_no_training(train, monkeypatch, tmp_path, made):
    installing(monkeypatch, "measures", made)
    small = ["data.train_size=24", "data.val_size=24", "data.num_workers=0", "schedule=single", "schedule.scales=[24]"]
    assert train(*small, "trainer.max_epochs=1", "run_dir=run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["measures"] == {"mine": None}
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_measure_cannot_change_the_answers(monkeypatch):
    import numpy as np

    from sppcls.measure.answers import Answers
    from sppcls.measure.scales import ScaleResult, rows_of

    def spoiled(answers):
        answers.predicted[:] = 0
        return 0.0

    installing(monkeypatch, "measures", spoiled)
    answers = Answers.empty([24], np.array([0, 1, 1]))
    answers.predicted[:] = [0, 1, 0]
    assert ScaleResult(rows_of(answers, [24]), answers).summary()["measures"] == {"mine": 0.0}
    assert answers.predicted.tolist() == [[0, 1, 0]]
