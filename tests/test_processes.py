"""The watcher of programs: it must see what is left, and print the stacks of what does not end."""

import sys
import time

import pytest

from tests.processes import PROC, Program, run_to_end

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="looks for processes in /proc")


def test_the_stacks_of_all_processes_of_a_program_that_hangs_are_shown(tmp_path):
    (tmp_path / "hangs.py").write_text(
        "import subprocess, sys, time\n"
        "def waits_for_ever():\n    time.sleep(60)\n"
        "if len(sys.argv) < 2:\n"
        "    other = subprocess.Popen([sys.executable, __file__, 'child'], start_new_session=True)\n"
        "    print('begun')\n"
        "waits_for_ever()\n"
    )
    program = Program.started([sys.executable, "hangs.py"], tmp_path)
    program.until(lambda: len(program.family()) == 2 and program.out == "begun\n")
    time.sleep(0.3)
    with pytest.raises(AssertionError, match="not ended after 0 s") as told:
        program.end(seconds=0)
    assert str(told.value).count("waits_for_ever") == 2
    assert str(told.value).count("==== stacks of") == 2
    assert program.family() == []


def test_a_process_that_is_left_is_seen(tmp_path):
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True); print('done')"
    with pytest.raises(AssertionError, match="1 processes are left"):
        Program.started([sys.executable, "-c", code], tmp_path).end(grace=0.1)


def test_the_time_from_the_last_output_to_the_end_is_known(tmp_path):
    found = run_to_end([sys.executable, "-c", "import time; print('last', flush=True); time.sleep(0.5)"], tmp_path)
    assert (found.out, found.err) == ("last\n", "")
    assert 0.4 < found.silent < 5


def test_a_wrong_status_fails(tmp_path):
    with pytest.raises(AssertionError, match=r"3 for 0: .*\n.*why"):
        run_to_end([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], tmp_path)
