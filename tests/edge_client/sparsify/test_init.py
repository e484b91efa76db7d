"""``edge_client.sparsify``: methods by name."""

from dataclasses import replace

import pytest

from edge_client.sparsify import METHODS, sparsifier
from protocol.errors import ConfigError
from tests.edge_client.federation import tiny_plan


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_found_under_its_own_name(name: str) -> None:
    plan = tiny_plan(method=name, powerprop=1.25 if name == "sparsyfed" else 1.0)
    method = sparsifier(plan)
    assert method.name == name
    assert type(method) is METHODS[name]
    assert method.plan is plan


def test_the_papers_method_its_baselines_and_the_dense_one_are_there() -> None:
    assert {"fedavg", "fedsparsify-global", "fedsparsify-local", "sparsyfed", "spafl", "one-shot", "random"} <= set(
        METHODS
    )


@pytest.mark.parametrize("name", ["", "FedAvg", "fedsparsify", "magic"])
def test_an_unknown_method_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no method '{name}'; known are .*fedsparsify-global"):
        sparsifier(replace(tiny_plan(), method=name))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_cannot_remove_filters_says_so(name: str) -> None:
    plan = tiny_plan(method=name, granularity="filter")
    if "filter" in METHODS[name].granularities:
        assert sparsifier(plan).plan is plan
        return
    with pytest.raises(ConfigError, match=f"{name} cannot remove by filter, only by weight"):
        sparsifier(plan)


def test_fedsparsify_and_its_baselines_remove_filters_and_fedavg_does_not() -> None:
    assert {name for name, method in METHODS.items() if "filter" in method.granularities} == {
        "fedsparsify-global", "one-shot", "random"
    }  # fmt: skip


def test_an_unknown_allocation_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="there is no allocation 'fair'; known are global, uniform, erk, macs"):
        sparsifier(tiny_plan(allocation="fair"))
