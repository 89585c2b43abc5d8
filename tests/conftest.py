"""One thread a test process: the tests' tensors are small, and threads that wait for each other are slow."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """Keep what a test caches out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
