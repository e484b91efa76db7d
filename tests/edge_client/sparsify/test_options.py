"""``edge_client.sparsify.options``: what a class declares, a plan gives and a method reads."""

from dataclasses import replace
from typing import Any

import pytest

from edge_client.sparsify import METHODS, Sparsifier
from edge_client.sparsify.fedavg import FedAvg
from edge_client.sparsify.options import FRACTION, POSITIVE, Option, above, at_least
from protocol.errors import ConfigError
from protocol.plan import Plan
from tests.edge_client.federation import tiny_plan


class Base(FedAvg):
    """The first of two in a line."""

    name = "base"
    half_life = Option(3, "Rounds.", at_least(1))
    shape = Option("round", "Shape.", choices=("round", "square"))


class Derived(Base):
    """Changes one option, adds one, and computes one."""

    name = "derived"
    half_life = replace(Base.half_life, default=5, range=above(4))
    share = Option(0.5, "Share.", FRACTION)
    quick = Option(False, "Whether.")
    last = Option(0, "Round.", derived=lambda plan: plan.rounds - 1, derived_text="(rounds-1)")


def plan_of(**options: Any) -> Plan:
    return replace(tiny_plan(rounds=9, **options), method="derived")


def test_values_are_attributes_given_or_at_their_defaults() -> None:
    method = Derived(plan_of(share=0.25, quick=True))
    assert (method.half_life, method.shape, method.share, method.quick, method.last) == (5, "round", 0.25, True, 8)
    assert Derived(plan_of(last=2)).last == 2
    assert Base(replace(plan_of(), method="base")).half_life == 3


def test_a_class_knows_its_own_options_and_those_of_its_bases_once_each() -> None:
    assert list(Base.declared()) == ["powerprop", "half-life", "shape"]
    assert list(Derived.declared()) == ["powerprop", "half-life", "shape", "share", "quick", "last"]
    assert Base.declared()["half-life"] is Base.half_life
    assert Derived.declared()["half-life"].default == 5
    assert [option.shown for option in Derived.declared().values()] == [
        "1.0",
        "5",
        "round",
        "0.5",
        "false",
        "(rounds-1)",
    ]
    assert [option.allowed for option in Derived.declared().values()] == [
        "1 or more", "above 4", "one of round, square", "a fraction in [0, 1)", "true or false", ""
    ]  # fmt: skip


def test_a_whole_number_counts_as_real_where_the_option_is_real() -> None:
    share = Derived(plan_of(share=0)).share
    assert (share, type(share)) == (0.0, float)
    powerprop = FedAvg(tiny_plan(powerprop=2.0)).powerprop
    assert (powerprop, type(powerprop)) == (2.0, float)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"half_lives": 3}, "derived has no option half-lives; its options are powerprop, half-life, shape, share"),
        ({"half_life": 5.5}, r"half-life must be of type int, not 5\.5"),
        ({"half_life": True}, "half-life must be of type int, not True"),
        ({"half_life": "5"}, "half-life must be of type int, not '5'"),
        ({"half_life": 4}, "half-life must be above 4, not 4"),
        ({"share": True}, "share must be of type float, not True"),
        ({"share": 1.0}, r"share must be a fraction in \[0, 1\), not 1\.0"),
        ({"quick": 1}, "quick must be of type bool, not 1"),
        ({"shape": "oval"}, "there is no shape 'oval'; known are round, square"),
        ({"shape": 3}, "shape must be of type str, not 3"),
    ],
)
def test_what_the_method_does_not_know_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Derived(plan_of(**options))


def test_a_method_without_options_says_so() -> None:
    class Bare(Sparsifier):
        name = "bare"
        survivors = FedAvg.survivors

    with pytest.raises(ConfigError, match="bare has no option share; it has none"):
        Bare(tiny_plan(share=0.5))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("exponent", [0.1], [0.0, -1.0]),
        ("first-prune", [0], [-1]),
        ("frequency", [1], [0]),
        ("layer-floor", [0.0, 0.1], [1.0, -0.01]),
        ("start-sparsity", [0.0, 0.999], [1.0, -0.01]),
        ("powerprop", [1.25, 5.0], [0.99, -1.0]),
        ("threshold-penalty", [0.0, 1.0], [-0.01]),
    ],
)
def test_each_option_has_its_range(name: str, good: list[Any], bad: list[Any]) -> None:
    having = [kind for kind in METHODS.values() if name in kind.declared()]
    assert having
    for kind in having:
        for value in good:
            plan = replace(tiny_plan(), method=kind.name, options=((name, value),))
            assert kind(plan).options[name] == value
        for value in bad:
            with pytest.raises(ConfigError, match=f"{name} must be"):
                kind(replace(tiny_plan(), method=kind.name, options=((name, value),)))


def test_ranges_are_open_where_they_say_so() -> None:
    assert [POSITIVE.holds(value) for value in (0, 1e-9)] == [False, True]
    assert [FRACTION.holds(value) for value in (-1e-9, 0, 1)] == [False, True, False]
    assert [at_least(2).holds(value) for value in (1, 2)] == [False, True]
    assert [above(2).holds(value) for value in (2, 3)] == [False, True]
