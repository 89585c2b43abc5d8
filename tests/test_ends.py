"""Programs end: with the right status, soon after their last line, and with no process left; whatever ends them.

`pytest -m slow -s tests/test_ends.py` ends 200 of them; see tests/ending.py.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.processes import PROC, run_to_end

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="looks for processes in /proc")


def ends(folder, kinds, count, seed, *how):
    """Return a dictionary a program that was ended."""
    command = [sys.executable, "-m", "tests.ending", kinds, str(count), str(seed), str(folder), *how]
    told = run_to_end(command, ROOT, seconds=120 + 60 * count, OPENBLAS_NUM_THREADS="1")
    found = [json.loads(line) for line in told.out.splitlines()]
    assert len(found) == count
    return found


@pytest.mark.parametrize(
    ("kinds", "count", "seed", "how"),
    [
        ("train,evaluate,sweep", 20, 1, ()),
        pytest.param("train,evaluate,sweep", 120, 2, (), marks=pytest.mark.slow),
        pytest.param("train,evaluate,sweep", 40, 3, ("started",), marks=pytest.mark.slow),
        pytest.param("ranks", 40, 4, ("started",), marks=pytest.mark.slow),
    ],
)
def test_programs_end_whatever_ends_them(tmp_path, kinds, count, seed, how):
    found = ends(tmp_path, kinds, count, seed, *how)
    print(sorted(Counter((one["kind"], one["end"], one["status"]) for one in found).items()))
    print("longest from the last line to the end:", max(one["silent"] for one in found))
    wrong = [one for one in found if one["wrong"]]
    assert not wrong, "\n\n".join("\n".join(f"{key}: {value}" for key, value in one.items()) for one in wrong)


def test_ctrl_c_after_all_is_done_changes_nothing(tmp_path):
    code = "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    (tmp_path / "sitecustomize.py").write_text(code)
    ended = run_to_end([sys.executable, ROOT / "train.py", "--version"], tmp_path, PYTHONPATH=str(tmp_path))
    assert ended.err == ""


def test_ctrl_c_while_the_imports_take_their_seconds(tmp_path):
    (tmp_path / "pydantic.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = run_to_end([sys.executable, ROOT / "train.py"], tmp_path, 130, PYTHONPATH=str(tmp_path))
    assert (ended.out, ended.err) == ("", "")
