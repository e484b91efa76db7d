"""``protocol.plan``: what all must agree on, and its name."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, HeadroomError
from protocol.grid import Grid
from protocol.parameters import Parameters
from protocol.plan import GRANULARITIES, Plan, plan_from_config

PLANS = st.builds(
    Plan,
    method=st.text(max_size=8),
    sparsity=st.floats(0, 1, exclude_max=True),
    granularity=st.sampled_from(GRANULARITIES),
    exponent=st.floats(0, 9, exclude_min=True),
    first_prune=st.integers(0, 99),
    frequency=st.integers(1, 9),
    allocation=st.text(max_size=8),
    layer_floor=st.floats(0, 1, exclude_max=True),
    strict_majority=st.booleans(),
    start_sparsity=st.floats(0, 1, exclude_max=True),
    dense_first=st.booleans(),
    powerprop=st.floats(1, 9),
    threshold_penalty=st.floats(0, 9),
    threshold_estimator=st.text(max_size=8),
    rounds=st.integers(1, 99),
    fraction=st.floats(0, 1, exclude_min=True),
    min_cohort=st.integers(3, 9),
    max_cohort=st.integers(9, 99),
    bits=st.integers(2, 24),
    model=st.text(max_size=8),
    data=st.text(max_size=8),
    partition=st.text(max_size=8),
    epochs=st.integers(1, 9),
    batch_size=st.integers(1, 99),
    learning_rate=st.floats(0, 9, exclude_min=True),
    momentum=st.floats(0, 1, exclude_max=True),
    proximal=st.floats(0, 9),
    seed=st.integers(0, (1 << 32) - 1),
    deadline=st.floats(0, 9, exclude_min=True),
    attempts=st.integers(1, 9),
)


@given(PLANS)
def test_plan_from_config_undoes_to_config(plan: Plan) -> None:
    back = plan_from_config(plan.to_config())
    assert back == plan
    assert back.digest == plan.digest
    assert len(plan.digest) == 32


OTHERS: dict[str, Any] = {
    "method": "spafl",
    "sparsity": 0.5,
    "granularity": "filter",
    "exponent": 2.0,
    "first_prune": 2,
    "frequency": 2,
    "allocation": "erk",
    "layer_floor": 0.01,
    "strict_majority": True,
    "start_sparsity": 0.4,
    "dense_first": True,
    "powerprop": 1.25,
    "threshold_penalty": 0.1,
    "threshold_estimator": "clipped",
    "rounds": 41,
    "fraction": 0.5,
    "min_cohort": 4,
    "max_cohort": 11,
    "bits": 12,
    "model": "lenet",
    "data": "mnist",
    "partition": "dirichlet",
    "epochs": 5,
    "batch_size": 64,
    "learning_rate": 0.5,
    "momentum": 0.5,
    "proximal": 0.1,
    "seed": 7,
    "deadline": 5.0,
    "attempts": 3,
}


def test_every_field_changes_the_digest() -> None:
    assert set(OTHERS) == {field.name for field in fields(Plan)}
    digests = {Plan().digest} | {replace(Plan(), **{name: value}).digest for name, value in OTHERS.items()}
    assert len(digests) == 1 + len(OTHERS)


@pytest.mark.parametrize("name", ["plain_modulus", "fields", "drop_up", "drop_down"])
def test_the_parameters_of_encryption_change_the_digest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Plan().digest
    monkeypatch.setattr(Parameters, name, property(lambda _: 1))
    assert Plan().digest != before


def test_the_order_of_the_config_does_not_change_the_digest() -> None:
    config = Plan().to_config()
    assert plan_from_config(dict(reversed(config.items()))).digest == Plan().digest


def test_equal_plans_have_equal_digests_though_one_says_zero_and_the_other_zero_point_zero() -> None:
    whole, real = Plan(sparsity=0, fraction=1), Plan(sparsity=0.0, fraction=1.0)
    assert whole == real
    assert whole.digest == real.digest
    assert [type(whole.to_config()[key]) for key in ("sparsity", "fraction", "rounds")] == [float, float, int]


def test_whole_numbers_in_a_config_are_real_where_the_plan_asks_for_it() -> None:
    plan = plan_from_config({**Plan().to_config(), "sparsity": 0, "deadline": 60})
    assert (plan.sparsity, plan.deadline) == (0.0, 60.0)
    assert type(plan.deadline) is float


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", 40.0),
        ("rounds", "40"),
        ("rounds", True),
        ("sparsity", "0.9"),
        ("sparsity", False),
        ("method", 3),
        ("model", None),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be of type"):
        plan_from_config({**Plan().to_config(), key: value})


def test_unknown_and_missing_keys_are_named() -> None:
    config = Plan().to_config()
    with pytest.raises(ConfigError, match=r"unknown keys: min_cohort, zeal; known are method, sparsity"):
        plan_from_config({**config, "zeal": 1, "min_cohort": 3})
    with pytest.raises(ConfigError, match="lacks bits, seed"):
        plan_from_config({key: value for key, value in config.items() if key not in {"bits", "seed"}})


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("sparsity", [0.0, 0.999], [1.0, -0.01, float("nan")]),
        ("granularity", ["weight", "filter"], ["", "channel", "Filter"]),
        ("exponent", [0.1], [0.0, -1.0, float("nan")]),
        ("first_prune", [0], [-1]),
        ("frequency", [1], [0]),
        ("layer_floor", [0.0, 0.999], [1.0, -0.01, float("nan")]),
        ("start_sparsity", [0.0, 0.999], [1.0, -0.01, float("nan")]),
        ("powerprop", [1.0, 5.0], [0.99, -1.0, float("nan")]),
        ("threshold_penalty", [0.0, 1.0], [-0.01, float("nan")]),
        ("rounds", [1], [0]),
        ("fraction", [0.01, 1.0], [0.0, 1.01, float("nan")]),
        ("min_cohort", [3, 10], [2, 0, 11]),
        ("max_cohort", [3, 1000], [2]),
        ("bits", [2, 24], [1, 25]),
        ("epochs", [1], [0]),
        ("batch_size", [1], [0]),
        ("learning_rate", [1e-9], [0.0, -1.0, float("nan")]),
        ("momentum", [0.0, 0.999], [1.0, -0.1, float("nan")]),
        ("proximal", [0.0, 1.0], [-0.1, float("nan")]),
        ("seed", [0, (1 << 32) - 1], [-1, 1 << 32]),
        ("deadline", [0.1], [0.0, -1.0, float("nan")]),
        ("attempts", [1], [0]),
    ],
)
def test_each_field_has_its_range(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(replace(Plan(), **{field: value}), field) == value
    for value in bad:
        with pytest.raises(ConfigError, match=r"must (be|lie)"):
            replace(Plan(), **{field: value})


def test_the_refusal_names_the_key_as_the_config_spells_it() -> None:
    with pytest.raises(ConfigError, match="min-cohort must be 3 or more: a smaller sum exposes its members, not 2"):
        Plan(min_cohort=2)


def test_a_plan_whose_sums_would_not_decrypt_is_refused_when_it_is_built() -> None:
    with pytest.raises(HeadroomError):
        Plan(bits=24, max_cohort=1 << 30)


def test_the_parameters_follow_from_the_bits_and_the_largest_cohort() -> None:
    assert Plan(bits=12, max_cohort=7).parameters == Parameters(Grid(12, 7))
