"""``protocol.lanes``: adding slots adds the integers inside them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import HeadroomError
from protocol.grid import Grid, Integers
from protocol.lanes import Lanes, Slots, pack, unpack, value_lanes, vote_lanes


@st.composite
def all_lanes(draw: st.DrawFn) -> Lanes:
    """Lanes of any radix that holds zero, in any modulus that fits; also exactly, and up to the largest."""
    radix = draw(st.integers(2, 1 << 20) | st.integers(2, 5))
    per_slot = draw(st.integers(1, 8))
    while radix**per_slot >= 1 << 63:
        per_slot -= 1
    low = -draw(st.integers(0, radix - 1))
    modulus = draw(st.just(radix**per_slot) | st.integers(radix**per_slot, (1 << 63) - 1))
    return Lanes(low, radix, per_slot, modulus)


@st.composite
def sums(draw: st.DrawFn) -> tuple[Lanes, list[Integers]]:
    """Summands, each in range and with a sum in range at every place: sorted cuts through a range around zero."""
    lanes = draw(all_lanes())
    clients, count = draw(st.integers(1, 5)), draw(st.integers(0, 12))
    columns = []
    for _ in range(count):
        cuts = draw(st.lists(st.integers(lanes.low, lanes.low + lanes.radix - 1), min_size=clients, max_size=clients))
        parts = [cuts[0], *(b - a for a, b in pairwise(cuts))]
        inside = all(lanes.low <= part < lanes.low + lanes.radix for part in parts)
        columns.append(parts if inside else [cuts[-1], *[0] * (clients - 1)])
    return lanes, [np.array([column[k] for column in columns], np.int64) for k in range(clients)]


def add(parts: list[Slots], modulus: int) -> Slots:
    """The sum modulo t, in Python's integers."""
    columns = zip(*(part.tolist() for part in parts), strict=True)
    return np.array([sum(column) % modulus for column in columns], np.uint64)


def naive(integers: list[int], lanes: Lanes) -> list[int]:
    """The definition: f digits to a number, modulo t."""
    cut = [integers[i : i + lanes.per_slot] for i in range(0, len(integers), lanes.per_slot)]
    return [sum(x * lanes.radix**j for j, x in enumerate(row)) % lanes.modulus for row in cut]


@pytest.mark.slow
@given(sums())
def test_unpacking_the_sum_of_slots_gives_the_sum_of_integers(case: tuple[Lanes, list[Integers]]) -> None:
    lanes, summands = case
    total = add([pack(x, lanes) for x in summands], lanes.modulus)
    back = unpack(total, summands[0].size, lanes)
    assert back.dtype == np.int64
    assert back.tolist() == np.sum(summands, axis=0).tolist()


@given(sums())
def test_a_slot_is_a_number_in_mixed_radix(case: tuple[Lanes, list[Integers]]) -> None:
    lanes, summands = case
    for integers in summands:
        slots = pack(integers, lanes)
        assert slots.dtype == np.uint64
        assert slots.tolist() == naive(integers.tolist(), lanes)
        assert slots.size == lanes.slots(integers.size)


@given(all_lanes(), st.data())
def test_the_ends_of_the_range_survive(lanes: Lanes, data: st.DataObject) -> None:
    ends = st.sampled_from([lanes.low, lanes.low + lanes.radix - 1, 0])
    integers = np.array(data.draw(st.lists(ends, min_size=1, max_size=20)), np.int64)
    np.testing.assert_array_equal(unpack(pack(integers, lanes), integers.size, lanes), integers, strict=True)


@given(all_lanes(), st.integers(0, 20), st.booleans())
def test_an_integer_out_of_its_lane_is_refused(lanes: Lanes, before: int, above: bool) -> None:
    integers = np.zeros(before + 1, np.int64)
    integers[before] = lanes.low + lanes.radix if above else lanes.low - 1
    with pytest.raises(ValueError, match="out of its lane's range"):
        pack(integers, lanes)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_slots_of_another_count_are_refused(count: int) -> None:
    lanes = Lanes(-1, 4, 2, 16)
    with pytest.raises(ValueError, match="3 integers take 2 slots"):
        unpack(np.zeros(count, np.uint64), 3, lanes)


def test_no_integers_are_no_slots() -> None:
    lanes = Lanes(0, 4, 3, 64)
    assert pack(np.zeros(0, np.int64), lanes).shape == (0,)
    assert unpack(np.zeros(0, np.uint64), 0, lanes).shape == (0,)


@pytest.mark.parametrize(
    ("low", "radix", "per_slot", "modulus"),
    [
        (0, 4, 0, 100),
        (0, 1, 1, 100),
        (0, 4, 3, 63),
        (-5, 10, 19, 1 << 62),
        (0, 2, 63, 1 << 63),
        (0, 2, 64, 1 << 64),
        (1, 4, 2, 16),
        (-4, 4, 2, 16),
    ],
)
def test_lanes_that_cannot_hold_their_sums_are_refused(low: int, radix: int, per_slot: int, modulus: int) -> None:
    with pytest.raises(HeadroomError):
        Lanes(low, radix, per_slot, modulus)


@given(st.integers(2, 24), st.integers(1, 1000), st.integers(1, 4))
def test_the_lanes_of_values_hold_every_sum_on_the_grid(bits: int, clients: int, per_slot: int) -> None:
    grid = Grid(bits, clients)
    while grid.radix**per_slot >= 1 << 63:
        per_slot -= 1
    lanes = value_lanes(grid, per_slot)
    assert lanes.modulus == grid.radix**per_slot
    assert lanes.low == -grid.reach
    assert lanes.low + lanes.radix - 1 >= grid.reach
    ends = np.array([grid.reach, -grid.reach] * per_slot, np.int64)
    assert unpack(pack(ends, lanes), ends.size, lanes).tolist() == ends.tolist()


@given(st.integers(1, 1000), st.integers(0, 59))
def test_as_many_votes_share_a_slot_as_the_modulus_takes(clients: int, spare: int) -> None:
    modulus = clients + 1 + (1 << spare)
    lanes = vote_lanes(clients, modulus)
    assert (lanes.low, lanes.radix, lanes.modulus) == (0, clients + 1, modulus)
    assert lanes.radix**lanes.per_slot <= modulus < lanes.radix ** (lanes.per_slot + 1)
    everybody = add([pack(np.ones(7, np.int64), lanes)] * clients, modulus)
    assert unpack(everybody, 7, lanes).tolist() == [clients] * 7


def test_a_modulus_too_small_for_one_vote_is_refused() -> None:
    with pytest.raises(HeadroomError):
        vote_lanes(10, 10)


def test_neighbours_do_not_disturb_one_another() -> None:
    lanes = Lanes(-7, 16, 3, 4096)
    rows = [np.array(row, np.int64) for row in ([7, -7, 1], [-7, 0, -1], [-7, 0, 0])]
    total = add([pack(row, lanes) for row in rows], lanes.modulus)
    assert unpack(total, 3, lanes).tolist() == [-7, -7, 0]
