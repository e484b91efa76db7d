"""``edge_client.sparsify``: methods by name."""

from dataclasses import replace

import pytest

from edge_client.sparsify import METHODS, complete, sparsifier
from protocol.errors import ConfigError
from protocol.plan import Plan
from tests.edge_client.federation import tiny_plan


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_found_under_its_own_name(name: str) -> None:
    plan = tiny_plan(method=name)
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
        sparsifier(tiny_plan(method="topk", allocation="fair"))


def test_fedavg_and_spafl_have_no_target() -> None:
    assert {name for name, method in METHODS.items() if not method.has_target} == {"fedavg", "spafl"}


@pytest.mark.parametrize("name", METHODS)
def test_a_complete_plan_spells_out_every_option_and_means_the_same(name: str) -> None:
    plan = tiny_plan(method=name)
    whole = complete(plan)
    assert replace(whole, options=()) == plan
    assert dict(whole.options) == sparsifier(plan).options
    assert complete(whole) == whole


@pytest.mark.parametrize("name", METHODS)
def test_no_option_has_the_name_of_a_field_of_the_plan_and_all_say_what_they_are(name: str) -> None:
    options = METHODS[name].declared()
    assert options.keys().isdisjoint(Plan().to_config())
    for option in options.values():
        assert option.help.endswith(".")
        assert (
            option.value(tiny_plan(method=name), None) == option.value(tiny_plan(method=name), option.default)
            or option.derived
        )


def test_one_shot_prunes_ten_rounds_before_the_end_where_it_is_not_told_when() -> None:
    assert sparsifier(tiny_plan(method="one-shot", rounds=40)).options["first-prune"] == 30
    assert sparsifier(tiny_plan(method="one-shot", rounds=4)).options["first-prune"] == 1
    assert sparsifier(tiny_plan(method="one-shot", rounds=40, first_prune=7)).options["first-prune"] == 7
