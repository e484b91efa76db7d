"""``protocol.plan``: what all must agree on, and its name."""

import re
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, HeadroomError
from protocol.grid import Grid
from protocol.parameters import Parameters
from protocol.plan import GRANULARITIES, Plan, plan_from_config

SCALARS = st.text() | st.booleans() | st.integers(-(1 << 63) + 1, (1 << 63) - 1) | st.floats(-1e18, 1e18)
PLANS = st.builds(
    Plan,
    method=st.text(max_size=8),
    sparsity=st.floats(0, 1, exclude_max=True),
    granularity=st.sampled_from(GRANULARITIES),
    rounds=st.integers(1, 99),
    fraction=st.floats(0, 1, exclude_min=True),
    min_cohort=st.integers(5, 9),
    max_cohort=st.integers(9, 99),
    colluders=st.integers(0, 3),
    max_share=st.floats(0.2, 1),
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
    options=st.dictionaries(st.from_regex(r"[a-z]{1,3}(-[a-z0-9]{1,3}){0,2}", fullmatch=True), SCALARS).map(
        lambda table: tuple(table.items())
    ),
)


@pytest.mark.slow
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
    "rounds": 41,
    "fraction": 0.5,
    "min_cohort": 4,
    "max_cohort": 11,
    "colluders": 0,
    "max_share": 0.75,
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
    "options": (("exponent", 2.0),),
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


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63), 10**400, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("key", ["rounds", "deadline", "method"])
def test_a_number_that_cannot_be_written_and_read_anywhere_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be a finite number of at most 63 bits"):
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
        ("rounds", [1], [0]),
        ("fraction", [0.01, 1.0], [0.0, 1.01, float("nan")]),
        ("min_cohort", [3, 10], [2, 0, 11]),
        ("max_cohort", [3, 1000], [2]),
        ("colluders", [0, 1], [-1, 2]),
        ("max_share", [1 / 3, 0.5, 1.0], [0.33, 1.01, float("nan")]),
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
    refused = "min-cohort must be 3 (colluders + 2) or more: a smaller sum exposes its members, not 2"
    with pytest.raises(ConfigError, match=re.escape(refused)):
        Plan(min_cohort=2)


@pytest.mark.parametrize("colluders", range(9))
def test_the_smallest_cohort_hides_two_honest_clients_from_the_colluders(colluders: int) -> None:
    assert Plan(colluders=colluders, min_cohort=colluders + 2).colluders == colluders
    with pytest.raises(ConfigError, match=rf"min-cohort must be {colluders + 2} \(colluders"):
        Plan(colluders=colluders, min_cohort=colluders + 1)


@pytest.mark.parametrize("clients", range(3, 10))
def test_a_share_that_is_too_small_for_the_smallest_cohort_is_refused(clients: int) -> None:
    """Its members could not all be within it."""
    assert Plan(min_cohort=clients, max_share=1 / clients).max_share == 1 / clients
    with pytest.raises(ConfigError, match=r"max-share must be a fraction in \[1 / min-cohort, 1\]"):
        Plan(min_cohort=clients, max_share=0.99 / clients)


@given(st.integers(0, (1 << 32) - 1), st.binary(min_size=16, max_size=16), st.integers(0, 15), st.integers(1, 255))
def test_the_seed_of_a_run_differs_by_its_name_and_by_the_plans_seed(
    seed: int, run: bytes, place: int, change: int
) -> None:
    plan = Plan(seed=seed)
    other = run[:place] + bytes([run[place] ^ change]) + run[place + 1 :]
    seeds = [plan.run_seed(run), plan.run_seed(other), Plan(seed=seed ^ 1).run_seed(run)]
    assert len(set(seeds)) == 3
    assert all(0 <= one < 1 << 64 for one in seeds)
    assert replace(plan, epochs=9).run_seed(run) == seeds[0]


def test_a_plan_whose_sums_would_not_decrypt_is_refused_when_it_is_built() -> None:
    with pytest.raises(HeadroomError):
        Plan(bits=24, max_cohort=1 << 30)


def test_the_parameters_follow_from_the_bits_and_the_largest_cohort() -> None:
    assert Plan(bits=12, max_cohort=7).parameters == Parameters(Grid(12, 7))


# --- the options of the method ------------------------------------------------------------------


def test_options_are_a_table_in_a_file_and_dotted_names_in_a_run_config() -> None:
    plan = Plan(options=(("strict-majority", True), ("allocation", "erk"), ("exponent", 2.5)))
    dotted = plan.to_config()
    assert {
        "options.allocation": "erk",
        "options.exponent": 2.5,
        "options.strict-majority": True,
    }.items() <= dotted.items()
    nested = {**Plan().to_config(), "options": dict(plan.options)}
    assert plan_from_config(nested) == plan_from_config(dotted) == plan
    assert plan_from_config({**Plan().to_config(), "options": {}}) == Plan()


def test_neither_the_order_of_options_nor_the_spelling_of_a_whole_number_makes_another_plan() -> None:
    one, other = Plan(options=(("b", 3.0), ("a", "x"))), Plan(options=(("a", "x"), ("b", 3)))
    assert one == other
    assert one.digest == other.digest
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    "options",
    [(("exponent", 3.0),), (("exponent", 2.0),), (("exponent", "3.0"),), (("exponents", 3.0),), (("exponent", True),)],
)
def test_every_name_value_and_kind_of_an_option_changes_the_digest(options: tuple[tuple[str, Any], ...]) -> None:
    others: list[Any] = [(("exponent", 3.5),), (("exponent", "3"),), (("exponent", False),), ()]
    assert Plan(options=options).digest not in {Plan(options=other).digest for other in others}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"": 1}, "an option's name is made of a-z, 0-9 and single hyphens; '' is not"),
        ({"Beta": 1}, "'Beta' is not"),
        ({"first_prune": 1}, "'first_prune' is not"),
        ({"first--prune": 1}, "'first--prune' is not"),
        ({"1st": 1}, "'1st' is not"),
        ({"a": None}, "the option a must be a text, a number or true or false, not None"),
        ({"a": [1]}, r"the option a must be a text, a number or true or false, not \[1\]"),
        ({"a": {"b": 1}}, "the option a must be"),
        ({"a": float("nan")}, "the option a must be a finite number of at most 63 bits"),
        ({"a": float("-inf")}, "the option a must be a finite number of at most 63 bits"),
        ({"a": 1 << 63}, "the option a must be a finite number of at most 63 bits"),
    ],
)
def test_an_option_is_a_scalar_with_a_name_in_kebab_case(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_from_config({**Plan().to_config(), "options": options})


def test_an_option_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="the option exponent is given twice"):
        plan_from_config({**Plan().to_config(), "options": {"exponent": 3}, "options.exponent": 3})


def test_options_that_are_no_table_are_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match=r"unknown keys: options; known are method, .* and the table options of"):
        plan_from_config({**Plan().to_config(), "options": 3})
