"""``protocol.tag``: tags add up as their integers do, and nothing else than the true sum passes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.lanes import pack, unpack
from protocol.plan import Plan
from protocol.tag import HALVES, PRIME, TAGS, check_tag, make_tag, tag_lanes

KEY = bytes(range(32))
SIZES = st.sampled_from([0, 1, 3, 255, 256, 257, 1000])


def some(seed: int, size: int, bound: int = 1 << 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(-bound, bound, size, endpoint=True)


@given(st.integers(0, 2**32 - 1), SIZES, st.integers(1, 200))
def test_tags_of_any_number_of_clients_add_up(seed: int, size: int, clients: int) -> None:
    parts = [some(seed + k, size, (1 << 24) // clients) for k in range(clients)]
    total = np.sum(parts, axis=0).astype(np.int64)
    assert check_tag(total, np.sum([make_tag(part, KEY) for part in parts], axis=0), KEY)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 255, 256, 1000]), st.data())
def test_a_tag_is_the_product_with_the_expanded_key_and_each_key_has_its_own(
    seed: int, size: int, data: st.DataObject
) -> None:
    key = data.draw(st.binary(min_size=32, max_size=32))
    x = some(seed, size)
    # The definition, in Python's integers; r is read off by the tags of unit vectors.
    unit = np.zeros(size, np.int64)
    first = make_tag(x, key).reshape(TAGS, 2)
    tags = [int(low) + (int(high) << 16) for low, high in first]
    columns = []
    for i in range(min(size, 300)):
        unit[i] = 1
        columns.append([int(a) + (int(b) << 16) for a, b in make_tag(unit, key).reshape(TAGS, 2)])
        unit[i] = 0
    if size <= 300:
        for j in range(TAGS):
            assert tags[j] == sum(int(value) * column[j] for value, column in zip(x, columns, strict=True)) % PRIME
    # A Toeplitz matrix: each diagonal is constant.
    for i in range(len(columns) - 1):
        assert columns[i][1:] == columns[i + 1][:-1]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 256, 1000]), st.data())
def test_a_changed_integer_or_tag_or_key_is_noticed(seed: int, size: int, data: st.DataObject) -> None:
    x = some(seed, size, 1000)
    tag = make_tag(x, KEY)
    place, change = data.draw(st.integers(0, size - 1)), data.draw(st.integers(-(1 << 20), 1 << 20).filter(bool))
    changed = x.copy()
    changed[place] += change
    assert not check_tag(changed, tag, KEY)
    half = data.draw(st.integers(0, HALVES - 1))
    other = tag.copy()
    other[half] ^= 1
    assert not check_tag(x, other, KEY)
    if x.any():
        assert not check_tag(x, tag, KEY[::-1])


def test_values_are_expanded_uniformly_below_the_prime() -> None:
    unit = np.zeros(1, np.int64)
    unit[0] = 1
    seen = [make_tag(unit, i.to_bytes(32, "big")).reshape(TAGS, 2) for i in range(500)]
    values = np.array([[int(a) + (int(b) << 16) for a, b in row] for row in seen]) / PRIME
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.03
    assert abs(values.std() - 12**-0.5) < 0.02


def test_an_integer_that_could_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than"):
        make_tag(np.array([(1 << 24) + 1]), KEY)
    extreme = np.full(1024, -(1 << 24))
    assert check_tag(extreme, make_tag(extreme, KEY), KEY)


@pytest.mark.parametrize("clients", [1, 3, 10, 100, 1000])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_largest_tags_of_a_full_cohort_fit_their_lanes(clients: int, bits: int) -> None:
    modulus = Plan(max_cohort=max(3, clients), bits=bits).parameters.plain_modulus
    lanes = tag_lanes(clients, modulus)
    largest = np.full(HALVES, (1 << 16) - 1)
    slots = np.zeros(lanes.slots(HALVES), np.uint64)
    for _ in range(clients):
        slots = (slots + pack(largest, lanes)) % np.uint64(modulus)
    assert unpack(slots, HALVES, lanes).tolist() == [clients * ((1 << 16) - 1)] * HALVES
