"""``protocol.payload``: what clients gave comes out of the sum of their slots, and whatever else is refused."""

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Spoiled
from protocol.figures import FIGURES, Figures, encode_figures
from protocol.grid import Grid, Integers
from protocol.lanes import Slots, pack, unpack
from protocol.parameters import Parameters
from protocol.payload import pack_payload, unpack_payload
from protocol.tag import TAG_KEY_BYTES, tag

KEY = bytes(range(TAG_KEY_BYTES))
P = Parameters(Grid(16, 10))
SEEDS = st.integers(0, 2**32 - 1)
GRIDS = st.sampled_from([(16, 10), (8, 10), (2, 10), (24, 1000), (16, 100)])


def added(payloads: list[Slots], p: Parameters) -> Slots:
    total = np.zeros_like(payloads[0])
    for payload in payloads:
        total = (total + payload) % np.uint64(p.plain_modulus)
    return total


def measured(seed: int, clients: int) -> list[Figures]:
    rng = np.random.default_rng(seed)
    return [Figures(*(int(rng.integers(0, 1 << 32)) for _ in FIGURES)) for _ in range(clients)]


def given_by(seed: int, size: int, clients: int, p: Parameters, voting: bool) -> tuple[list[Integers], list[Integers]]:
    rng = np.random.default_rng(seed)
    bound = p.grid.levels // clients
    values = [rng.integers(-bound, bound, size, endpoint=True) for _ in range(clients)]
    return values, [rng.integers(0, 2, size * voting) for _ in range(clients)]


@given(SEEDS, st.integers(0, 60), st.integers(1, 10), GRIDS, st.booleans())
def test_what_the_clients_gave_is_what_their_sum_holds(
    seed: int, size: int, clients: int, grid: tuple[int, int], voting: bool
) -> None:
    p = Parameters(Grid(*grid))
    values, votes = given_by(seed, size, clients, p, voting)
    figures = measured(seed, clients)
    total = added([pack_payload(x, v, f, KEY, p) for x, v, f in zip(values, votes, figures, strict=True)], p)
    assert total.size == p.slots(size, size * voting)
    summed, chosen, told = unpack_payload(total, clients, size, size * voting, KEY, p)
    assert told == reduce(add, figures)
    assert summed.tolist() == np.sum(values, axis=0).tolist()
    assert chosen.tolist() == np.sum(votes, axis=0).tolist()


@given(SEEDS, st.integers(1, 20), st.booleans(), st.data())
def test_a_sum_of_which_one_slot_differs_is_refused(seed: int, size: int, voting: bool, data: st.DataObject) -> None:
    values, votes = given_by(seed, size, 3, P, voting)
    figures = measured(seed, 3)
    total = added([pack_payload(x, v, f, KEY, P) for x, v, f in zip(values, votes, figures, strict=True)], P)
    slot = data.draw(st.integers(0, total.size - 1))
    number = data.draw(st.integers(1, P.plain_modulus - 1) | st.sampled_from([1, P.grid.radix, P.plain_modulus // 2]))
    total[slot] = (int(total[slot]) + number) % P.plain_modulus
    with pytest.raises(Spoiled, match="does not decrypt to the sum of its clients"):
        unpack_payload(total, 3, size, size * voting, KEY, P)


@given(st.integers(1, 20), st.integers(1, 10), GRIDS, st.booleans(), st.data())
def test_any_slots_at_all_are_refused_with_no_other_error(
    size: int, clients: int, grid: tuple[int, int], voting: bool, data: st.DataObject
) -> None:
    p = Parameters(Grid(*grid))
    t = p.plain_modulus
    one = st.integers(0, t - 1) | st.sampled_from([0, 1, t - 1, t // 2, p.grid.reach, t - p.grid.reach])
    used = p.slots(size, size * voting)
    slots = np.array(data.draw(st.lists(one, min_size=used, max_size=used)), np.uint64)
    with pytest.raises(Spoiled, match="does not decrypt to the sum of its clients"):
        unpack_payload(slots, clients, size, size * voting, KEY, p)


def test_the_parts_stand_where_the_readme_says() -> None:
    integers, votes = np.array([5, -6, 7, 8]), np.array([1, 0, 1, 1])
    figures = Figures(1, 2, 3, 4, 5, 6, 7)
    slots = pack_payload(integers, votes, figures, KEY, P)
    digits = encode_figures(figures, P.grid).tolist()
    assert (P.fields, P.tags, P.trailing, slots.size) == (3, 4, 24, 10 + 1 + 4)
    assert unpack(slots[:10], 30, P.values).tolist() == [5, -6, 7, 8, 1, *digits, 0, 0]
    assert unpack(slots[10:11], 4, P.votes).tolist() == [1, 0, 1, 1]
    assert slots[11:].tolist() == tag(np.array([5, -6, 7, 8, 1, *digits, 1, 0, 1, 1]), 1, KEY, P).tolist()


@pytest.mark.parametrize(
    "part", ["value beyond the reach", "count", "figures beyond the reach", "votes beyond the clients", "padding"]
)
def test_a_sum_whose_tag_holds_is_refused_all_the_same_where_no_cohort_gives_it(part: str) -> None:
    """Whoever holds the key, a colluding client, makes any tag; what a lane may hold is looked at on its own."""
    integers = np.concatenate([[5, -6, 7, 8, 3], encode_figures(Figures(tested=9), P.grid)])
    votes = np.array([1, 0, 3, 2, 0])
    if part == "value beyond the reach":
        integers[2] = P.grid.reach + 1
    elif part == "count":
        integers[4] = 4
    elif part == "votes beyond the clients":
        votes[1] = 4
    elif part == "figures beyond the reach":
        integers[5] = P.grid.reach + 1
    padded = np.append(integers, int(part == "padding"))
    both = np.concatenate([integers, votes])
    within = np.clip(both, -P.grid.reach, P.grid.reach)
    tags = (tag(within, 3, KEY, P) + tag(both - within, 0, KEY, P)) % np.uint64(P.plain_modulus)
    assert integers.size == 4 + P.trailing
    with pytest.raises(Spoiled, match="does not decrypt to the sum of its clients"):
        unpack_payload(np.concatenate([pack(padded, P.values), pack(votes, P.votes), tags]), 3, 4, 4, KEY, P)
