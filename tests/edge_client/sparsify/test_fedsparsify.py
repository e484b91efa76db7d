"""``edge_client.sparsify.fedsparsify``: against a naive twin of the paper's method, and the laws of its masks."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_client.learning.network import build_network, layout_of
from edge_client.sparsify import GlobalState, Sparsifier, sparsifier
from edge_client.sparsify.fedsparsify import FedSparsifyGlobal, OneShot, RandomPruning, Scheduled
from edge_client.sparsify.topk import kept_at
from edge_client.sums import state_after
from protocol.errors import ConfigError
from protocol.layout import Layout, Mask, TensorSpec, Vector, unflatten
from protocol.plan import Plan
from tests.edge_client import networks, tiny
from tests.edge_client.federation import RUN, federation, play_round, tiny_plan
from tests.edge_client.sparsify import plaintext_twin
from tests.edge_client.sparsify.side_by_side import encrypted

LAYOUT = Layout((TensorSpec("a", (90,), True), TensorSpec("b", (7,), False), TensorSpec("c", (10,), True)))
BUFFERS = ~LAYOUT.prunable
NO_VOTES = np.zeros(LAYOUT.size, np.int64)
SCHEDULED = ("fedsparsify-global", "random", "one-shot")


def masks(method: Sparsifier, seed: int = 0) -> list[Mask]:
    """The mask after each round of a run whose means are noise."""
    rng = np.random.default_rng(seed)
    mask, made = np.ones(LAYOUT.size, np.bool_), []
    for round_ in range(1, method.plan.rounds + 1):
        mean: Vector = np.where(mask, rng.normal(0, 1, LAYOUT.size), 0).astype(np.float32)
        mask = method.survivors(mean, NO_VOTES, 3, LAYOUT, GlobalState(round_, mean, mask))
        made.append(mask)
    return made


def plan_of(method: str, **changes: object) -> Plan:
    return tiny_plan(method=method, sparsity=0.8, rounds=8, first_prune=2, **changes)


# --- against the twin ---------------------------------------------------------------------------


@pytest.mark.slow
def test_three_encrypted_rounds_give_the_masks_and_weights_of_the_plaintext_method(tmp_path: Path) -> None:
    """S = 0.75 of 64 parameters: s_2 * 64 = 42 and s_3 * 64 = 48 are whole, so no rounding of counts is in play."""
    plan = tiny_plan(method="fedsparsify-global", sparsity=0.75, rounds=3, bits=20, seed=11)
    ours = encrypted(plan, tmp_path, 3)
    assert ours.network.layout.size == tiny.PARAMETERS
    assert sorted(len(y) for _, y in ours.learners) == [16, 24, 32, 40]
    settings = plaintext_twin.Settings(0.75, 3, 1, 1, 3.0, plan.epochs, plan.batch_size, 0.1, plan.momentum)
    twin = plaintext_twin.train(ours.network.model, ours.learners, settings, ours.seed_of)
    for number, ((weights, kept), state, tolerance) in enumerate(zip(twin, ours.states, ours.tolerances, strict=True)):
        assert state.mask.tolist() == (ours.flat(kept) == 1).tolist()
        assert int(state.mask.sum()) == [64, 22, 16][number]
        assert not state.vector[~state.mask].any()
        assert tolerance < 1e-4
        np.testing.assert_allclose(state.vector, ours.flat(weights), rtol=0, atol=tolerance)


# --- laws of the masks --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULED)
@pytest.mark.parametrize("frequency", [1, 3])
def test_masks_are_nested_keep_the_scheduled_number_and_end_at_the_target(name: str, frequency: int) -> None:
    method = sparsifier(plan_of(name, **({} if name == "one-shot" else {"frequency": frequency})))
    assert isinstance(method, Scheduled)
    made = masks(method)
    for earlier, later in pairwise(made):
        assert not (later & ~earlier).any()
    counts = [int(mask.sum()) - 7 for mask in made]
    assert counts == [kept_at(method.sparsity(t), 100) for t in range(1, 9)]
    assert counts[:2] == [100, 100]
    assert counts[-1] == 100 - 80
    assert all(mask[BUFFERS].all() for mask in made)


@pytest.mark.slow
@settings(deadline=None)
@given(sparsity=st.integers(0, 99), seed=st.integers(0, 2**32 - 1))
def test_the_last_round_reaches_the_target_exactly(sparsity: int, seed: int) -> None:
    for name in SCHEDULED:
        method = sparsifier(replace(plan_of(name), sparsity=sparsity / 100, seed=seed))
        assert int(masks(method, seed)[-1].sum()) - 7 == max(1, 100 - sparsity)


def test_the_smallest_magnitudes_of_the_whole_model_go_first_and_ties_go_from_the_end() -> None:
    mean = np.zeros(LAYOUT.size, np.float32)
    mean[:90] = 0.5
    mean[10:20] = -0.25
    mean[90:97] = 1e-9
    mean[97:] = 0.125
    method = FedSparsifyGlobal(replace(plan_of("fedsparsify-global"), sparsity=0.5))
    everything = np.ones(LAYOUT.size, np.bool_)
    kept = method.survivors(mean, NO_VOTES, 3, LAYOUT, GlobalState(8, mean, everything))
    # 50 of 100 stay: of the 80 at 0.5 the first 50, which are positions 0..9 and 20..59; the buffers were never asked.
    assert np.flatnonzero(kept).tolist() == [*range(10), *range(20, 60), *range(90, 97)]


def test_a_purged_position_never_returns_even_if_all_that_is_left_is_zero() -> None:
    mask = BUFFERS.copy()
    mask[40:80] = True
    mean = np.zeros(LAYOUT.size, np.float32)
    method = FedSparsifyGlobal(plan_of("fedsparsify-global"))
    kept = method.survivors(mean, NO_VOTES, 3, LAYOUT, GlobalState(8, mean, mask))
    assert np.flatnonzero(kept & ~BUFFERS).tolist() == list(range(40, 60))


def test_where_fewer_have_survived_than_the_schedule_allows_all_of_them_stay() -> None:
    mask = BUFFERS.copy()
    mask[:5] = True
    mean = np.ones(LAYOUT.size, np.float32)
    method = FedSparsifyGlobal(plan_of("fedsparsify-global"))
    assert method.survivors(mean, NO_VOTES, 3, LAYOUT, GlobalState(8, mean, mask)).tolist() == mask.tolist()


@pytest.mark.parametrize("name", SCHEDULED)
def test_every_client_computes_the_same_mask(name: str) -> None:
    one, other = (masks(sparsifier(plan_of(name))) for _ in range(2))
    assert [mask.tolist() for mask in one] == [mask.tolist() for mask in other]


# --- the baselines ------------------------------------------------------------------------------


def test_random_takes_one_fixed_order_from_the_plans_seed_and_does_not_look_at_the_weights() -> None:
    method = RandomPruning(plan_of("random"))
    assert [m.tolist() for m in masks(method, seed=1)] == [m.tolist() for m in masks(method, seed=2)]
    other = RandomPruning(plan_of("random", seed=3))
    assert masks(method)[-1].tolist() != masks(other)[-1].tolist()
    ranks = method.scores(np.zeros(LAYOUT.size, np.float32))
    assert sorted(ranks.tolist()) == list(range(LAYOUT.size))


@pytest.mark.slow
def test_random_leaves_every_part_of_the_model_its_share() -> None:
    plan = plan_of("random")
    kept = np.mean([masks(RandomPruning(replace(plan, seed=seed)))[-1] for seed in range(200)], axis=0)
    # 20 of 100 stay: each position in a fifth of the draws, within five standard deviations.
    assert np.abs(kept[~BUFFERS] - 0.2).max() < 5 * (0.2 * 0.8 / 200) ** 0.5


def test_one_shot_is_dense_until_its_round_then_prunes_once_and_keeps_that_mask() -> None:
    made = masks(OneShot(plan_of("one-shot")))
    assert all(mask.all() for mask in made[:2])
    assert int(made[2].sum()) - 7 == 20
    assert all(mask.tolist() == made[2].tolist() for mask in made[3:])


def test_one_shot_keeps_the_largest_magnitudes_of_the_round_in_which_it_prunes() -> None:
    mean = np.linspace(1, 2, LAYOUT.size, dtype=np.float32)
    method = OneShot(plan_of("one-shot"))
    kept = method.survivors(mean, NO_VOTES, 3, LAYOUT, GlobalState(3, mean, np.ones(LAYOUT.size, np.bool_)))
    assert np.flatnonzero(kept & ~BUFFERS).tolist() == [*range(80, 90), *range(97, 107)]


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_plan_that_would_never_prune_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"rounds \(3\) must exceed first-prune \(3\), or nothing is ever pruned"):
        sparsifier(tiny_plan(method=name, rounds=3, first_prune=3))


# --- whole filters ------------------------------------------------------------------------------


def filter_masks(name: str, rounds: int = 8) -> tuple[Layout, list[Mask]]:
    """The mask after each round of a run on a small residual network whose means are noise."""
    method = sparsifier(plan_of(name, granularity="filter"))
    layout = layout_of(method.wear(networks.seeded(networks.Residual)), method)
    rng, mask, made = np.random.default_rng(0), np.ones(layout.size, np.bool_), []
    for round_ in range(1, rounds + 1):
        mean: Vector = np.where(mask, rng.normal(0, 1, layout.size), 0).astype(np.float32)
        mask = method.survivors(mean, np.zeros(layout.size, np.int64), 3, layout, GlobalState(round_, mean, mask))
        made.append(mask)
    return layout, made


@pytest.mark.parametrize("name", SCHEDULED)
def test_in_each_layer_the_scheduled_share_of_filters_is_dead_and_the_classes_stay(name: str) -> None:
    layout, made = filter_masks(name)
    method = sparsifier(plan_of(name))
    assert isinstance(method, Scheduled)
    for round_, mask in enumerate(made, start=1):
        cuts = unflatten(mask, layout)
        for layer, filters in (("stem", 4), ("inner", 4), ("branch", 8), ("project", 8)):
            alive = cuts[f"{layer}.weight"].reshape(filters, -1).any(axis=1)
            assert int(alive.sum()) == kept_at(method.sparsity(round_), filters)
            if layer in {"branch", "project"}:
                assert cuts[f"{layer}.bias"].tolist() == alive.tolist()
        assert cuts["fc.weight"].any(axis=1).all()
        assert cuts["fc.bias"].all()
    for earlier, later in pairwise(made):
        assert not (later & ~earlier).any()
    assert made[0].all()
    assert 1 - made[-1][layout.prunable].mean() >= 0.8


def test_the_filters_of_smallest_mean_magnitude_go_whatever_the_other_layers_hold() -> None:
    method = FedSparsifyGlobal(plan_of("fedsparsify-global", granularity="filter", frequency=1))
    network = method.wear(networks.seeded(networks.plain_mlp))
    layout = layout_of(network, method)
    mean = np.full(layout.size, 0.001, np.float32)
    weights = unflatten(mean, layout)
    weights["0.weight"][:] = [[3] * 5, [1] * 5, [2] * 5, [-5, 0, 0, 0, -9], [0, 0, 14, 0, 0], [1, 1, 1, 1, 2]]
    everything = np.ones(layout.size, np.bool_)
    mask = method.survivors(mean, np.zeros(layout.size, np.int64), 3, layout, GlobalState(8, mean, everything))
    cuts = unflatten(mask, layout)
    assert cuts["0.weight"].any(axis=1).tolist() == [True, False, False, False, False, False]
    assert cuts["0.bias"].tolist() == [True, False, False, False, False, False]
    assert cuts["3.weight"].tolist() == [[True, *[False] * 5], *[[False] * 6] * 3]
    assert cuts["5.weight"].tolist() == [[True, False, False, False]] * 3


def test_a_network_without_a_filter_is_refused() -> None:
    method = FedSparsifyGlobal(plan_of("fedsparsify-global", granularity="filter"))
    with pytest.raises(ConfigError, match="no plain linear or convolutional layer before its output"):
        method.wear(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)))


def test_a_frozen_layer_keeps_its_filters() -> None:
    method = FedSparsifyGlobal(plan_of("fedsparsify-global", granularity="filter"))
    network = method.wear(networks.seeded(networks.plain_mlp))
    network.get_parameter("0.weight").requires_grad_(False)
    layout = layout_of(network, method)
    mean, everything = np.ones(layout.size, np.float32), np.ones(layout.size, np.bool_)
    mask = method.survivors(mean, np.zeros(layout.size, np.int64), 3, layout, GlobalState(8, mean, everything))
    cuts = unflatten(mask, layout)
    assert cuts["0.weight"].all()
    assert int(cuts["3.bias"].sum()) == 1


def test_what_cannot_be_taken_out_is_noted_and_nothing_is_where_single_weights_are_purged() -> None:
    notes = {}
    for granularity in ("filter", "weight"):
        method = FedSparsifyGlobal(plan_of("fedsparsify-global", granularity=granularity))
        method.wear(networks.seeded(networks.Opaque))
        notes[granularity] = method.notes()
    assert notes == {
        "filter": (
            "filters are masked, not removed, at cat: cat", "filters are masked, not removed, at norm: LayerNorm"
        ),
        "weight": (),
    }  # fmt: skip


@pytest.mark.parametrize("model", ["tests.edge_client.networks:tabular", "tests.edge_client.tiny:build"])
def test_encrypted_rounds_shrink_the_update_by_whole_filters_and_the_statistics_of_dead_ones(
    tmp_path: Path, model: str
) -> None:
    plan = tiny_plan(method="fedsparsify-global", granularity="filter", sparsity=0.5, rounds=3, model=model)
    fed = federation(plan)
    clients = fed.clients(tmp_path)
    network = build_network(plan, (5,), 4, RUN)
    aggregate, sizes = b"", []
    for round_ in range(1, 4):
        played = play_round(clients, fed, round_, aggregate)
        aggregate = played.aggregate
        state = state_after(aggregate, RUN, round_, fed.kits[2], plan, network)
        sizes.append(int(state.mask.sum()))
        assert not state.vector[~state.mask].any()
    normed = model.endswith("tabular")
    # Of six neurons three stay: 3 * 5 + 3 weights and biases before, 4 * 3 weights behind; four classes; the norm.
    assert sizes[0] == network.layout.size
    assert sizes[-1] == 3 * 5 + 3 + 4 * 3 + 4 + 3 * 4 * normed


def test_a_client_says_in_its_log_where_filters_are_only_masked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tiny_plan(method="fedsparsify-global", granularity="filter", model="tests.edge_client.tiny:normed")
    fed = federation(plan)
    play_round(fed.clients(tmp_path), fed, 1, b"")
    assert caplog.messages == ["filters are masked, not removed, at norm: BatchNorm1d"] * 4


def test_filters_and_an_allocation_of_weights_contradict_each_other() -> None:
    for changes in ({"allocation": "uniform"}, {"layer_floor": 0.1}):
        with pytest.raises(ConfigError, match="filters go evenly from every layer: leave allocation and layer-floor"):
            sparsifier(plan_of("fedsparsify-global", granularity="filter", **changes))
