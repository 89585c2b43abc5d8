"""optim.lr=auto: the rate comes from a range test that leaves network, data and random numbers alone."""

import json

import pytest
import torch
from test_app import SMALL

from sppcls import MultiScaleDataModule
from sppcls.build import build_classifier
from sppcls.data.shapes import ShapesSource
from sppcls.errors import ConfigError
from sppcls.settings import ModelSpec
from sppcls.training.optim import HIGHEST, LOWEST, STEPS, find_rate
from sppcls.training_settings import OptimSpec


@pytest.fixture(scope="module")
def data():
    return MultiScaleDataModule(ShapesSource("train", 240), schedule=(32, 24), batch_size=16)


def network():
    torch.manual_seed(0)
    return build_classifier(ModelSpec(width=0.25), [f"class {n}" for n in range(12)], (32, 24))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_rate_is_found_and_nothing_else_changes(data, name):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = [find_rate(model, OptimSpec(name=name, lr="auto"), data.trial_batches(STEPS)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert found[0] == found[1]
    assert 5 * LOWEST < found[0] < HIGHEST / 10
    assert data.train_dataloader().state_dict()["position"] == 0


def test_batches_to_try_are_those_of_the_first_epochs(data):
    batches = list(data.trial_batches(40))
    first = data.plan(0)
    assert len(first) < 40
    assert [tuple(batch["indices"].tolist()) for batch in batches[: len(first)]] == [b.indices for b in first]
    assert {batch["scale"] for batch in batches} == {32, 24}


def test_batches_without_a_loss_are_said():
    batches = [{"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "targets": torch.tensor([-1, -1])}]
    with pytest.raises(ConfigError, match="grew at the lowest learning rates"):
        find_rate(network(), OptimSpec(), batches)


def test_a_run_finds_its_rate_once(train, capsys, tmp_path):
    assert train(*SMALL, "optim.lr=auto", "run_dir=run") == 0
    said = capsys.readouterr()
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["lr"]
    assert f"optim.lr=auto: {found:g}\n" in said.out + said.err
    assert train("resume=run", "trainer.max_epochs=3") == 0
    said = capsys.readouterr()
    assert "optim.lr=auto" not in said.out + said.err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["lr"] == found


def test_several_ranks_do_not_each_find_their_own(train, capsys):
    assert train(*SMALL, "optim.lr=auto", "trainer.devices=2") == 2
    assert "set optim.lr" in capsys.readouterr().err
