"""What the description of a run may say."""

import pytest
from pydantic import ValidationError

from dipp_core.book.full_schema import METHODS, FullScale, Stage
from dipp_core.method.algorithm import PRESETS

STAGE = {
    "method": "dipp",
    "alpha_rew": 10.0,
    "alpha_cfg": 1.5,
    "huber_c": 0.1,
    "ta_steps": 1,
    "timesteps": [20, 980],
    "max_grad_norm": 0.0,
    "steps": 5,
    "gen_lr": 1e-5,
    "ta_lr": 1e-5,
    "betas": [0.0, 0.99],
    "flat": 0.5,
    "ema": 0.99,
}


def test_the_methods_are_the_family():
    assert tuple(PRESETS) == METHODS


def test_a_stage_says_all_that_a_run_says_of_its_method():
    own = set(FullScale.model_fields) - set(FullScale.__mro__[1].model_fields)
    assert own < set(Stage.model_fields)
    assert Stage(**STAGE).model_dump() == STAGE


@pytest.mark.parametrize(
    ("key", "value"),
    [("method", "dpp"), ("steps", -1), ("gen_lr", 0.0), ("betas", [0.9, 1.0]), ("timesteps", [20]), ("ema", 1.0)],
)
def test_what_cannot_be_is_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        Stage(**(STAGE | {key: value}))
