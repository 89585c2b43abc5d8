"""The Hydra application and the verbs: exit statuses, one-line errors, sweeps, the installed program."""

import json

import pytest

from sppcls import commands
from sppcls.bench import BenchReport, paired

SMALL = [
    "data.train_size=24",
    "data.val_size=24",
    "data.batch_size=12",
    "model.width=0.125",
    "schedule.scales=[24,16]",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "metrics.test_scales=[16]",
    "metrics.gap_images=12",
]


def test_a_loss_that_is_not_finite_is_one_line(train, capsys):
    how = ("optim=sgd", "optim.lr=1e9", "optim.warmup_epochs=0", "trainer.max_epochs=3")
    assert train(*SMALL, *how) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: training diverged")
    assert err.count("\n") == 1


def test_plan_only_prints_the_schedule_and_leaves_nothing(train, tmp_path, capsys):
    assert train(*SMALL, "plan_only=true") == 0
    assert "drawn schedule" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_run_a_resume_and_what_may_not_change(train, tmp_path, capsys):
    assert train(*SMALL, "run_dir=r") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"r"}
    assert train("resume=r", "trainer.max_epochs=2") == 0
    assert len((tmp_path / "r" / "metrics.csv").read_text().splitlines()) == 3
    capsys.readouterr()
    assert train("resume=r", "model.levels=[3]") == 2
    assert "model.levels cannot change on resume" in capsys.readouterr().err


def test_the_same_command_again_goes_on(train, tmp_path, capsys):
    command = [*SMALL, "run_dir=r", "resume=auto"]
    assert train(*command) == 0
    assert "resumes from" not in capsys.readouterr().out
    assert train(*command, "++trainer.max_epochs=2", "logger=none") == 0
    assert "changed: trainer.max_epochs 1 -> 2" in capsys.readouterr().out
    assert train(*SMALL, "trainer.max_epochs=3", "run_dir=r", f"resume={tmp_path}/r/") == 0
    assert len((tmp_path / "r" / "metrics.csv").read_text().splitlines()) == 4
    capsys.readouterr()
    for wrong, said in (
        (["resume=auto", "optim=sgd"], "optim.name cannot change on resume (it is adamw in last.ckpt, sgd now)"),
        (["resume=r", "run_dir=q"], "run_dir=q cannot change on resume"),
        (["resume="], "resume="),
        (["resume=r", "trainer.levels=3"], "unknown key trainer.levels"),
    ):
        assert train(*(command[:-1] if wrong[0] == "resume=auto" else []), *wrong) == 2
        assert said in capsys.readouterr().err


def test_flags_may_stand_anywhere(train, capsys):
    assert train(*SMALL, "seed=0,1", "sweep.dry_run=true", "-m") == 0
    assert "jobs: 2" in capsys.readouterr().out


def test_cli_says_its_errors_in_one_line(capsys):
    for arguments, status in ((["bench", "nothing"], 2), (["benhc"], 2), ([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as end:
            commands.main(arguments)
        assert end.value.code == status
    with pytest.raises(SystemExit) as end:
        commands.main(["bench", "loader", "--data", "/nowhere"])
    assert end.value.code == 3
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_a_bench_prints_a_table_or_json(monkeypatch, capsys):
    from sppcls.bench import pooling

    report = BenchReport("pool", ("shape", "ratio"), [("7x7", 2.0)], {"worst_ratio": 2.0})
    monkeypatch.setattr(pooling, "pool", lambda: report)
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            commands.main(["bench", "pool", *flags])
        assert end.value.code == 0
    table, line = capsys.readouterr().out.split("{", 1)
    assert "worst_ratio: 2" in table
    assert json.loads("{" + line)["rows"] == [{"shape": "7x7", "ratio": 2.0}]


def test_paired_times_are_those_of_the_calls():
    calls = []
    ours, naive, ratio = paired(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert ours >= 0
    assert naive >= 0
    assert ratio > 0


def test_the_bench_of_saves_says_what_one_a_minute_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from sppcls.bench.training import saves

    report = saves(backbones=("tiny",), blocks=2)
    (row,) = report.rows
    assert row[0] == "tiny"
    assert row[4] == pytest.approx(row[3] * row[5])
    assert row[5] == pytest.approx(60 / (60 + row[2]))
    assert not any(tmp_path.iterdir())


def test_the_bench_of_options_times_each_against_the_plain_network(monkeypatch):
    from sppcls.bench import options

    monkeypatch.setattr(options, "IMAGES", 2)
    rows = options.option_rows("tiny", (16, 24), repeats=2)
    assert [row[:2] for row in rows] == [(f"tiny {name}", scale) for name in options.OPTIONS for scale in (16, 24)]
    assert all(row[2] > 0 and row[3] > 0 for row in rows)
