"""Read this first: one whole round of PruneSeal, from trained models to the decrypted sum, in one function.

The law of the whole: the sum that every client decrypts is the sum of the clients' integers, exactly, whatever the
model, the support, the cohort, the weights and the votes. All comparisons are ``==`` on integers.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.recovery import Recovery
from aggregator.summation import CohortSum, dealt_to
from edge_client.consenting import admit_release, consent
from edge_client.dealing import take
from edge_client.keys import Kit
from edge_client.learning.network import first_state
from edge_client.round import Update, admit_cohort, attend, close_update, dither_of, figures_of, quantised
from edge_client.sparsify import GlobalState
from edge_client.state import Measured
from edge_client.sums import Sum, open_sum
from protocol.call import Call
from protocol.cohort import bounded_weights, gather_cohort
from protocol.figures import Figures
from protocol.grid import Integers, dequantise, steps
from protocol.layout import Layout, TensorSpec
from protocol.parameters import DEGREE
from protocol.plan import Plan
from protocol.release import Release
from protocol.sharing import threshold
from protocol.wire import decode_aggregate, decode_contribution, encode_aggregate
from tests.edge_client.federation import NODES, RUN, federation


@dataclass(frozen=True)
class Round:
    """What came out of a round: the true sums, in the clear, and what each client decrypted."""

    values: Integers
    votes: Integers
    figures: Figures
    opened: Mapping[int, Sum]
    aggregate: bytes


def run_round(
    plan: Plan,
    kits: Mapping[int, Kit],
    layout: Layout,
    state: GlobalState,
    updates: Mapping[int, Update],
    call: Call,
    lost: Collection[int] = (),
) -> Round:
    """The protocol of one round, in which some are lost after they have attended.

    Everything between two steps is bytes, as it is on the network.
    """
    roster = next(iter(kits.values())).roster

    # 1. ATTEND. All clients hold the same state and have trained from it. Each makes new secrets for this attempt,
    #    deals a share of them to everybody who is invited, and signs who it is, how many samples it has, and digests of
    #    the model and of the positions that will travel. The trained values stay on its disk.
    invited = frozenset(updates)
    waiting = {node: attend(call, kits[node], plan, layout, state, made, invited) for node, made in updates.items()}
    dealt = {node: pending.dealt for node, pending in waiting.items()}

    # 2. ANNOUNCE. The aggregator lists the attendances that came in time. The list, with its signatures, is the cohort;
    #    with it each member gets the shares that the others have dealt it.
    announcement = gather_cohort([pending.attendance for pending in waiting.values()], roster).encode()

    # 3. CONTRIBUTE. Each client checks the list and finds itself in it. It scales its values by its share of the
    #    cohort's samples, rounds them to the grid, packs them with what it has measured, adds the masks of exactly this
    #    cohort and one of its own, encrypts under the key of this round, and signs.
    clear, figures, messages = {}, {}, {}
    for node, pending in waiting.items():
        cohort = admit_cohort(announcement, call, pending, kits[node], plan)
        shares = tuple(take(dealt_to(node, cohort, invited, dealt), cohort.members, call, kits[node]))
        waiting[node] = replace(pending, cohort=announcement, shares=shares)
        clear[node], clipped = quantised(pending, cohort, node, plan, dither_of(plan, call, node, pending.values.size))
        figures[node] = figures_of(Measured(0.25, node, 2 * node + 1), clipped, cohort, node, plan)
        if node not in lost:
            messages[node] = close_update(clear[node], figures[node], cohort, call, kits[node], plan, waiting[node])

    # 4. ADD. The aggregator reads each message against the attendance that announced it, and adds what it cannot read.
    total = CohortSum(cohort, plan)
    for member in cohort.members:
        if member.node in messages:
            total.add(decode_contribution(messages[member.node], member, len(waiting), plan.parameters, roster))
    masked = total.masked(call.attempt, invited, dealt)
    total.close()

    # 5. RELEASE. Of the masks, those of pairs that are both in the sum have cancelled. Enough of the clients consent to
    #    open exactly this sum: they answer with shares of what the others are made from, and the aggregator takes those
    #    out. It still has no key.
    release = Release(call.run, call.round, call.attempt, len(waiting), cohort.digest(call.attempt), True, masked.sets)
    recovery = Recovery(masked, plan, roster)
    for node in sorted(masked.nodes):
        agreed = admit_release(release, waiting[node], call, kits[node], plan)
        recovery.admit(node, consent(release, agreed, call, kits[node], plan, waiting[node]))
    (aggregate,) = masked.aggregates(recovery.masks(), plan, recovery.vouchers, recovery.sealed)
    data = encode_aggregate(aggregate, plan.parameters)

    # 6. OPEN. Every client decrypts the same sum, and nothing but the sum.
    opened = {node: open_sum(data, call.run, call.round, kit, plan, layout) for node, kit in kits.items()}

    inside = sorted(masked.nodes)
    votes = [waiting[node].votes.astype(np.int64) for node in inside]
    measured = reduce(add, (figures[node] for node in inside))
    return Round(np.sum([clear[node] for node in inside], axis=0), np.sum(votes, axis=0), measured, opened, data)


# --- what goes in -------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**32 - 1)
SAMPLES = st.sampled_from([1, 2, 3, 1_000, 60_000, 2**31]) | st.integers(1, 2**16)
FULL = 3 * (DEGREE - 4) - 24
"""As many values as one ciphertext holds, three to a slot, with count, figures and the four slots of a tag."""

SIZES = st.integers(1, 60) | st.sampled_from([FULL, FULL + 1, 3 * DEGREE + 5])
"""Models of a few values, and some on either side of where a second ciphertext begins (three values to a slot)."""


def layout_of_size(size: int) -> Layout:
    """Weights and, where there is room, a bias and a statistic that cannot be pruned."""
    bias, statistic = int(size > 2), int(size > 5)
    tensors = [TensorSpec("a.bias", (bias,), True), TensorSpec("a.mean", (statistic,), False)]
    return Layout((*tensors, TensorSpec("a.weight", (size - bias - statistic,), True)))


def some_state(seed: int, layout: Layout, density: float) -> GlobalState:
    """A model of which about this part survives, and at least one position."""
    rng = np.random.default_rng(seed)
    kept = rng.random(layout.size) < density
    kept[rng.integers(layout.size)] = True
    return GlobalState(4, np.where(kept, rng.normal(0, 1, layout.size), 0).astype(np.float32), kept)


def some_update(seed: int, state: GlobalState, samples: int, scale: float, voting: bool) -> Update:
    """Trained values near the state's or far beyond every clip."""
    rng = np.random.default_rng(seed)
    trained = np.where(state.mask, state.vector + rng.normal(0, scale, state.vector.size), 0).astype(np.float32)
    return Update(trained, rng.random(state.vector.size * voting) < rng.random(), samples)


@contextmanager
def downlink(form: str) -> Iterator[None]:
    """Let the aggregator believe that seeds are long, so that a small cohort's sum comes with its second half."""
    with pytest.MonkeyPatch.context() as patch:
        if form == "second half":
            patch.setattr("aggregator.summation.SEED_BYTES", 1 << 20)
        yield


# --- the laws -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 24),
    size=SIZES,
    density=st.sampled_from([0.05, 0.5, 1.0]),
    samples=st.lists(SAMPLES, min_size=3, max_size=6),
    scale=st.sampled_from([0.0, 0.1, 1e6]),
    voting=st.booleans(),
    form=st.sampled_from(["seeds", "second half"]),
    seed=SEEDS,
)
def test_the_decrypted_sum_is_the_sum_of_the_clear_integers(
    bits: int, size: int, density: float, samples: list[int], scale: float, voting: bool, form: str, seed: int
) -> None:
    plan = Plan(bits=bits, max_cohort=6, seed=seed)
    kits = federation(plan, nodes=len(samples)).kits
    layout = layout_of_size(size)
    state = some_state(seed, layout, density)
    updates = {
        node: some_update(seed + node, state, count, scale, voting) for node, count in zip(kits, samples, strict=True)
    }
    with downlink(form):
        result = run_round(plan, kits, layout, state, updates, Call(RUN, 5, 1))
    assert isinstance(decode_aggregate(result.aggregate, plan.parameters).second, tuple) == (form == "seeds")
    for opened in result.opened.values():
        assert opened.clients == len(samples)
        assert opened.terms.support.mask.tolist() == state.mask.tolist()
        assert opened.values.tolist() == result.values.tolist()
        assert opened.votes.tolist() == result.votes.tolist()
        assert opened.told.figures == result.figures
        assert opened.votes.size == (opened.values.size if voting else 0)


@settings(deadline=None, max_examples=15)
@given(samples=st.lists(SAMPLES, min_size=3, max_size=6), bits=st.integers(2, 24), seed=SEEDS)
def test_the_sum_stands_for_the_weighted_mean_within_one_step_a_client(
    samples: list[int], bits: int, seed: int
) -> None:
    plan = Plan(bits=bits, max_cohort=6)
    kits = federation(plan, nodes=len(samples)).kits
    layout = layout_of_size(40)
    state = some_state(seed, layout, 1.0)
    updates = {
        node: some_update(seed + node, state, count, 0.05, voting=False)
        for node, count in zip(kits, samples, strict=True)
    }
    opened = run_round(plan, kits, layout, state, updates, Call(RUN, 5, 1)).opened[NODES[0]]
    step = steps(opened.terms.clips, layout, opened.terms.support, plan.parameters.grid)
    weights = bounded_weights(samples, plan.max_share)
    mean = sum(
        u.values.astype(np.float64) * (weight / sum(weights))
        for u, weight in zip(updates.values(), weights, strict=True)
    )
    error = np.abs(dequantise(opened.values, step) - mean)
    assert (error < len(samples) * step + 1e-6).all()


@settings(deadline=None, max_examples=20)
@given(
    samples=st.lists(SAMPLES, min_size=4, max_size=6),
    lost=st.integers(1, 2),
    bits=st.integers(2, 24),
    voting=st.booleans(),
    form=st.sampled_from(["seeds", "second half"]),
    seed=SEEDS,
)
def test_the_sum_of_those_who_are_left_is_exact_and_stands_for_their_mean(
    samples: list[int], lost: int, bits: int, voting: bool, form: str, seed: int
) -> None:
    plan = Plan(bits=bits, max_cohort=6, seed=seed)
    kits = federation(plan, nodes=len(samples)).kits
    gone = list(kits)[: min(lost, len(samples) - threshold(len(samples), plan.colluders))]
    layout = layout_of_size(40)
    state = some_state(seed, layout, 1.0)
    updates = {n: some_update(seed + n, state, c, 0.05, voting) for n, c in zip(kits, samples, strict=True)}
    with downlink(form):
        result = run_round(plan, kits, layout, state, updates, Call(RUN, 5, 1), gone)
    weights = dict(zip(kits, bounded_weights(samples, plan.max_share), strict=True))
    inside = {node: weight for node, weight in weights.items() if node not in gone}
    mean = sum(updates[n].values.astype(np.float64) * (weight / sum(inside.values())) for n, weight in inside.items())
    for opened in result.opened.values():
        assert opened.clients == len(inside)
        assert opened.values.tolist() == result.values.tolist()
        assert opened.votes.tolist() == result.votes.tolist()
        step = steps(opened.terms.clips, layout, opened.terms.support, plan.parameters.grid) * opened.whole
        assert (np.abs(dequantise(opened.values, step) - mean) < len(samples) * step + 1e-6).all()


def test_a_client_that_was_not_in_the_cohort_opens_the_sum_as_well() -> None:
    plan = Plan(max_cohort=6)
    kits = federation(plan, nodes=6).kits
    layout = layout_of_size(30)
    state = first_state(np.linspace(-1, 1, 30, dtype=np.float32), layout)
    present = {node: some_update(node, state, 10, 0.1, voting=False) for node in list(kits)[:4]}
    result = run_round(plan, kits, layout, state, present, Call(RUN, 1, 1))
    assert set(result.opened) - set(present) == set(NODES[4:])
    assert {opened.clients for opened in result.opened.values()} == {4}
    assert {tuple(opened.values.tolist()) for opened in result.opened.values()} == {tuple(result.values.tolist())}


def test_a_repeated_round_gives_other_bytes_and_the_same_sum() -> None:
    plan = Plan(max_cohort=6)
    kits = federation(plan, nodes=3).kits
    layout = layout_of_size(30)
    state = first_state(np.linspace(-1, 1, 30, dtype=np.float32), layout)
    updates = {node: some_update(node, state, 10, 0.1, voting=True) for node in kits}
    one, other = (run_round(plan, kits, layout, state, updates, Call(RUN, 1, 1)) for _ in range(2))
    assert one.opened[NODES[0]].values.tolist() == other.opened[NODES[0]].values.tolist()
    first, again = (decode_aggregate(each.aggregate, plan.parameters) for each in (one, other))
    assert first.cohort != again.cohort
    assert not (first.first == again.first).any()
    assert first.sealed == again.sealed
