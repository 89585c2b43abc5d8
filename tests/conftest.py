"""One thread a test process: the tests' tensors are small, and threads that wait for each other are slow."""

import sys

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """Keep what a test caches out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Run train.py's main in an empty folder and return its exit status."""
    from sppcls import app

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as end:
            app.main()
        return end.value.code

    return call
