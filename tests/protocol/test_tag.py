"""``protocol.tag``: tags add up as their integers do, and nothing else than the true sum passes."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.grid import Grid, Integers
from protocol.lanes import Slots
from protocol.pairwise import keystream
from protocol.parameters import Parameters
from protocol.tag import TAG_KEY_BYTES, tag

KEY = bytes(range(TAG_KEY_BYTES))
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([0, 1, 3, 255, 1000, 8191, 8192, 8193, 20_000])
GRIDS = st.sampled_from([(16, 10), (12, 10), (8, 3), (2, 1), (16, 100), (24, 3), (24, 1000), (2, 10**8)])
P = Parameters(Grid(16, 10))


def some(seed: int, size: int, bound: int) -> Integers:
    """Integers of both signs, both ends among them."""
    made = np.random.default_rng(seed).integers(-bound, bound, size, endpoint=True)
    made[: size // 8], made[size // 8 : size // 4] = bound, -bound
    return made


def factors(key: bytes, count: int, bits: int) -> list[int]:
    """The first bits of each word of the stream of the key's first half, by the definition."""
    stream = Cipher(algorithms.ChaCha20(key[:32], bytes(16)), mode=None).encryptor().update(bytes(4 * count))
    return [int.from_bytes(stream[4 * i : 4 * i + 4], "little") >> (32 - bits) for i in range(count)]


def added(tags: list[Slots], p: Parameters) -> list[int]:
    """The sum modulo t, in Python's integers."""
    return [sum(map(int, column)) % p.plain_modulus for column in zip(*tags, strict=True)]


# --- what it is --------------------------------------------------------------------------------


@given(
    SEEDS, st.sampled_from([0, 1, 3, 255, 1000, 8193]), GRIDS, st.integers(1, 1000), st.binary(min_size=64, max_size=64)
)
def test_a_tag_is_the_toeplitz_product_and_as_many_pads_as_clients(
    seed: int, size: int, grid: tuple[int, int], clients: int, key: bytes
) -> None:
    p = Parameters(Grid(*grid))
    x, r = some(seed, size, p.grid.reach), factors(key, size + p.tags - 1, p.tag_bits)
    pads = keystream(key[32:], p.tags, p.plain_modulus).tolist()
    assert tag(x, clients, key, p).tolist() == [
        (sum(value * r[i + j] for i, value in enumerate(x.tolist())) + clients * pads[j]) % p.plain_modulus
        for j in range(p.tags)
    ]


@given(SEEDS, SIZES, GRIDS, st.integers(1, 12))
def test_tags_of_any_number_of_clients_add_up(seed: int, size: int, grid: tuple[int, int], clients: int) -> None:
    p = Parameters(Grid(*grid))
    parts = [some(seed + k, size, p.grid.reach // clients) for k in range(clients)]
    tags = [tag(part, 1, KEY, p) for part in parts]
    assert tag(np.sum(parts, axis=0), clients, KEY, p).tolist() == added(tags, p)


@given(st.integers(2, 24), st.integers(1, 50) | st.integers(1, 10**8))
def test_a_forgery_of_every_plan_takes_as_many_tries_as_a_key_of_128_bits(bits: int, clients: int) -> None:
    p = Parameters(Grid(bits, clients))
    assert 2**p.tag_bits <= p.plain_modulus
    assert p.tag_bits * p.tags >= 128 > p.tag_bits * (p.tags - 1)
    assert p.tag_bits == 32 or 2 ** (p.tag_bits + 1) > p.plain_modulus


@given(st.integers(2, 24), st.integers(1, 50) | st.integers(1, 10**8), st.data())
def test_the_difference_of_two_sums_is_zero_or_invertible(bits: int, clients: int, data: st.DataObject) -> None:
    """What the argument rests on: a factor that the key does not fix leaves no product of it fixed."""
    p = Parameters(Grid(bits, clients))
    largest = 2 * p.grid.reach
    difference = data.draw(st.integers(1, largest) | st.sampled_from([largest, clients, 2, p.grid.levels]))
    inverse = pow(difference, -1, p.plain_modulus)
    assert difference * inverse % p.plain_modulus == 1


# --- what it refuses ---------------------------------------------------------------------------


@given(SEEDS, st.sampled_from([1, 255, 1000, 8193]), GRIDS, st.data())
def test_any_other_integers_clients_or_key_have_another_tag(
    seed: int, size: int, grid: tuple[int, int], data: st.DataObject
) -> None:
    p = Parameters(Grid(*grid))
    x = some(seed, size, p.grid.reach)
    true = tag(x, 3, KEY, p)
    place, value = data.draw(st.integers(0, size - 1)), data.draw(st.integers(-p.grid.reach, p.grid.reach))
    assume(x[place] != value and x.any())  # of zeros alone the tag is the pads
    changed = x.copy()
    changed[place] = value
    assert not (tag(changed, 3, KEY, p) == true).any()  # each sum of its own would have noticed
    assert not np.array_equal(tag(x, 2, KEY, p), true)
    for half in (KEY[:32] + KEY[:32], KEY[32:] + KEY[32:]):
        assert not np.array_equal(tag(x, 3, half, p), true)


@given(SEEDS, st.integers(1, 6), SEEDS)
def test_what_is_moved_along_has_no_tag_that_follows_from_the_true_one(seed: int, by: int, key: int) -> None:
    """A Toeplitz product of the same integers one place on is the product before it, but for the pads."""
    x = np.concatenate([np.zeros(6, np.int64), some(seed, 100, 30_000), np.zeros(6, np.int64)])
    drawn = np.random.default_rng(key).bytes(TAG_KEY_BYTES)
    true, moved = tag(x, 3, drawn, P).tolist(), tag(np.roll(x, -by), 3, drawn, P).tolist()
    assert not set(true) & set(moved)


def test_a_multiple_of_a_sum_has_the_multiple_of_its_tag_for_that_many_clients_alone() -> None:
    """Why the key of a tag must depend on how many clients the sum holds."""
    x = some(1, 100, 1000)
    twice = [2 * int(each) % P.plain_modulus for each in tag(x, 3, KEY, P)]
    assert tag(2 * x, 6, KEY, P).tolist() == twice
    assert not set(tag(2 * x, 3, KEY, P).tolist()) & set(twice)


def test_tags_of_one_key_tell_nothing_of_the_integers_to_who_lacks_it() -> None:
    """Over many keys the tag of zeros, of ones and of the largest are alike: uniform below t."""
    for x in (np.zeros(9, np.int64), np.ones(9, np.int64), np.full(9, P.grid.reach)):
        seen = [tag(x, 3, np.random.default_rng(i).bytes(64), P) for i in range(500)]
        shares = np.array(seen, np.float64).ravel() / P.plain_modulus
        assert 0 <= shares.min()
        assert shares.max() < 1
        assert abs(shares.mean() - 0.5) < 0.03
        assert abs(shares.std() - 12**-0.5) < 0.02


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("bits", "clients"), [(16, 10), (24, 3), (2, 10**8)])
def test_an_integer_beyond_the_reach_of_a_sum_is_refused(bits: int, clients: int, sign: int) -> None:
    p = Parameters(Grid(bits, clients))
    with pytest.raises(ValueError, match="larger than"):
        tag(np.array([0, sign * (p.grid.reach + 1)]), 1, KEY, p)
    assert tag(np.array([0, sign * p.grid.reach]), 1, KEY, p).size == p.tags
