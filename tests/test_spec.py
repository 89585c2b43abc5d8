"""Validation at the edge: one line that names the key, what was got and what is allowed."""

import pytest

from sppcls.errors import ConfigError
from sppcls.spec import Spec, keys, parse


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": {"batch_sise": 3}}, "unknown key data.batch_sise; did you mean 'data.batch_size'?"),
        ({"model": {"levels": [4, 0]}}, "model.levels: got 0, input should be greater than or equal to 1"),
        ({"model": {"norm_per_scale": [4]}}, "model.norm_per_scale: got 4, input should be greater than or equal to 8"),
        ({"model": {"norm_per_scale": []}}, "model.norm_per_scale=[]: expected at least 1 value"),
        ({"model": {"levels": []}}, "model.levels=[]: expected at least 1 value"),
        ({"schedule": {"kind": "sinlge"}}, "schedule.kind=sinlge is unknown; did you mean 'single'?"),
        (
            {"schedule": {"kind": "progressive", "scales": [64]}},
            "progressive takes two scales or more, got [64]",
        ),
        ({"schedule": {"kind": "single", "scales": [4]}}, "schedule.scales: got 4, input should be greater"),
        ({"schedule": {"every": "batch"}}, "every=batch needs schedule=random, got drawn"),
        ({"trainer": {"max_epochs": "many"}}, "trainer.max_epochs='many': input should be a valid integer"),
        ({"model": {"pool": "fixed"}}, "model.pool=fixed takes one square size, got data.fit=keep"),
        ({"data": {"batch_size": 1}}, "data.batch_size=1: input should be greater than or equal to 2"),
        ({"optim": {"lr": -1}}, "optim.lr=-1: input should be greater than 0"),
        (
            {"model": {"hidden": [10**12]}},
            "model.hidden: got 1000000000000, input should be less than or equal to 65",
        ),
        ({"trainer": {"max_epochs": 10**400}}, "trainer.max_epochs=1000"),
        ({"model": {"pool": "x" * 10**6}}, "model.pool='xxx"),
        ({"model": None}, "model=None: input should be a valid dictionary"),
    ],
)
def test_wrong_values_are_one_line(values, said):
    with pytest.raises(ConfigError) as error:
        parse(values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_spec_survives_a_round_trip_as_plain_values():
    spec = parse({"model": {"levels": [3, 2, 1]}, "data": {"classes": ["a", "b"]}})
    assert parse(spec.model_dump(mode="json")) == spec


def test_keys_the_contract_relies_on_exist():
    relied_on = """data.root data.fit data.batch_size data.num_workers schedule.scales model.backbone model.weights
        model.pool model.levels trainer.max_epochs trainer.deterministic trainer.checkpoint_every_steps seed run_dir
        sweep_dir resume data.train_size data.val_size"""
    assert set(relied_on.split()) <= set(keys())


def test_test_scales_span_half_to_double_and_hold_the_trained_ones():
    assert Spec().test_scales == (32, 48, 64, 96, 128)
    assert parse({"metrics": {"test_scales": [96, 32]}}).test_scales == (32, 96)
    fixed = {"model": {"pool": "fixed"}, "data": {"fit": "warp"}, "schedule": {"kind": "single", "scales": [64]}}
    assert parse(fixed).test_scales == (64,)
