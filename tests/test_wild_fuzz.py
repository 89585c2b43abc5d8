"""Thousands of damaged files, one by one: each is an image or is refused by name, and none takes the process with it.

`SPPCLS_WILD_FILES` is the number of files of the slow test, `SPPCLS_WILD_FIRST` the first one's seed.
"""

import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from PIL import Image
from wild_files import look, mutant, whole_files

# A process with torch, and the most that a file may take: 179 megapixels of 24 bytes.
MEMORY = 600e6 + 24 * 2 * (Image.MAX_IMAGE_PIXELS or 0)
MOST_SECONDS = 20  # of processor time a file, so that a busy machine is no hang; the largest let through take about 5
MOST_WAIT = 600  # seconds, for what waits and computes nothing


def test_damaged_files_are_images_or_are_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: Counter[bool] = Counter()
    for number in range(450):
        name, data, history = mutant(number)
        (tmp_path / name).write_bytes(data)
        try:
            seen[look(tmp_path / name)] += 1
        except Exception as error:
            raise AssertionError(history) from error
        said = "".join(capfd.readouterr())
        assert not said or name.endswith("tif"), f"{history} printed {said}"
    assert min(seen.values()) > 100, "the damage is neither too slight nor too heavy"


def work(link: Connection, folder: Path) -> None:
    """Look at the mutants whose numbers come over ``link``; answer (verdict, processor seconds, peak bytes) to each."""
    torch.set_num_threads(1)
    allowed = resource.getrlimit(resource.RLIMIT_CPU)[1]
    warnings.simplefilter("error")
    (folder / "first.png").write_bytes(whole_files()["a.png"])
    look(folder / "first.png")  # what is loaded at the first file is not that file's time
    said = os.open(folder / "said.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    while (number := link.recv()) is not None:
        name, data, _ = mutant(number)
        path = folder / name
        path.write_bytes(data)
        before, start = os.fstat(said).st_size, time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(start + MOST_SECONDS) + 1, allowed))
        try:
            verdict = "decoded" if look(path) else "refused"
        except BaseException as error:  # whatever it is, the parent has to hear of it
            verdict = f"{type(error).__name__}: {error}"
        sys.stdout.flush()
        if os.fstat(said).st_size > before and not name.endswith("tif"):  # libtiff cannot be told to be quiet
            verdict = f"it printed {os.pread(said, 300, before)!r}"
        path.unlink()
        link.send((verdict, time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


class Watched:
    """A process that looks at mutants, and a new one after a crash or a hang."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._context = folder, multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._link, theirs = self._context.Pipe()
        self._process = self._context.Process(target=work, args=(theirs, self.folder), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, number: int) -> tuple[str, float, int]:
        try:
            self._link.send(number)
            if self._link.poll(MOST_WAIT):
                verdict: tuple[str, float, int] = self._link.recv()
                return verdict
            self._process.kill()
        except (EOFError, OSError):
            pass
        self._process.join()
        end = f"no answer, exit code {self._process.exitcode}"  # -9 after MOST_WAIT, -24 after MOST_SECONDS
        self._start()
        return end, 0.0, 0


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    watched, first = Watched(tmp_path), int(os.environ.get("SPPCLS_WILD_FIRST", 0))
    results = {n: watched(n) for n in range(first, first + int(os.environ.get("SPPCLS_WILD_FILES", 10_000)))}
    kinds = Counter(verdict for verdict, _, _ in results.values())
    wrong = [
        f"{mutant(n)[2]}: {verdict}" for n, (verdict, _, _) in results.items() if verdict not in ("decoded", "refused")
    ]
    slowest = max(results, key=lambda n: results[n][1])
    seconds, memory = sum(s for _, s, _ in results.values()), max(peak for _, _, peak in results.values())
    print(
        f"\n{len(results)} files, {len(results) / seconds:.0f} a processor second: {kinds['decoded']} decoded, ", end=""
    )
    print(f"{kinds['refused']} refused, {len(wrong)} wrong; peak memory {memory / 1e6:.0f} MB; ", end="")
    print(f"slowest {results[slowest][1]:.2f} s, {mutant(slowest)[2]}", *wrong, sep="\n")
    assert not wrong
    assert memory < MEMORY
    assert min(kinds["decoded"], kinds["refused"]) > len(results) / 10
