"""``protocol.pairwise``: masks, of which those of pairs cancel in exactly one sum."""

import struct
from collections.abc import Collection, Iterable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import pairwise
from protocol.lanes import Slots
from protocol.pairwise import keystream, mask, pair_key, self_key, streams
from tests.factories import secrets

MODULI = st.integers(1, (1 << 59) - 1) | st.sampled_from([1, 2, 3, 1 << 58, (1 << 59) - 1])
KEYS = st.binary(min_size=32, max_size=32)
COHORT = bytes(range(32))


def naive(key: bytes, count: int, modulus: int) -> list[int]:
    """The definition: 8 bytes of the stream at a time, passed over when they would bias the remainder."""
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    values: list[int] = []
    while len(values) < count:
        word = int.from_bytes(encryptor.update(bytes(8)), "little")
        if word < 2**64 - 2**64 % modulus:
            values.append(word % modulus)
    return values


@st.composite
def federations(draw: st.DrawFn) -> tuple[int, dict[int, Slots], dict[int, Slots]]:
    """A modulus, the slots of each node, and the same slots masked for the cohort of all of them."""
    modulus = draw(MODULI)
    nodes = draw(st.lists(st.integers(0, (1 << 32) - 1), min_size=2, max_size=6, unique=True))
    size = draw(st.integers(0, 5))
    plain = {
        node: np.array(draw(st.lists(st.integers(0, modulus - 1), min_size=size, max_size=size)), np.uint64)
        for node in nodes
    }
    masked = {
        node: (plain[node] + mask(size, node, own_key(node), keys_of(node, nodes), modulus)) % np.uint64(modulus)
        for node in nodes
    }
    return modulus, plain, masked


def keys_of(node: int, nodes: Collection[int], cohort: bytes = COHORT) -> dict[int, bytes]:
    """The keys that a node shares with the others; the secret of a pair is made of its numbers."""
    return {
        peer: pair_key(struct.pack("<II", *sorted((node, peer))) * 4, cohort, (node, peer))
        for peer in nodes
        if peer != node
    }


def own_key(node: int, cohort: bytes = COHORT) -> bytes:
    """The key of a node's own mask; its seed is made of its number."""
    return self_key(struct.pack("<I", node) * 8, cohort, node)


def add(parts: Iterable[Slots], modulus: int) -> list[int]:
    return [sum(column) % modulus for column in zip(*(part.tolist() for part in parts), strict=True)]


def less(slots: list[int], masks: Iterable[Slots], modulus: int) -> list[int]:
    """Slots without some masks."""
    return [(slot - taken) % modulus for slot, taken in zip(slots, add(masks, modulus), strict=True)]


@given(federations())
def test_in_the_sum_over_the_cohort_only_each_members_own_mask_is_left(
    case: tuple[int, dict[int, Slots], dict[int, Slots]],
) -> None:
    modulus, plain, masked = case
    own = [keystream(own_key(node), plain[node].size, modulus) for node in plain]
    assert less(add(masked.values(), modulus), own, modulus) == add(plain.values(), modulus)


@given(federations(), st.data())
def test_of_lost_members_what_is_left_is_the_mask_of_the_others_for_the_pairs_with_them(
    case: tuple[int, dict[int, Slots], dict[int, Slots]], data: st.DataObject
) -> None:
    modulus, plain, masked = case
    nodes = list(plain)
    present = data.draw(st.lists(st.sampled_from(nodes), min_size=1, unique=True))
    left = [
        mask(plain[node].size, node, own_key(node), keys_of(node, set(nodes) - set(present) | {node}), modulus)
        for node in present
    ]
    total = add([masked[node] for node in present], modulus)
    assert less(total, left, modulus) == add([plain[node] for node in present], modulus)


@pytest.mark.slow
@given(federations(), st.data())
def test_in_the_sum_over_a_subset_the_stream_of_every_open_pair_is_left(
    case: tuple[int, dict[int, Slots], dict[int, Slots]], data: st.DataObject
) -> None:
    modulus, plain, masked = case
    nodes = list(plain)
    present = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=len(nodes) - 1, unique=True))
    left = add([masked[node] for node in present], modulus)
    expected = add([plain[node] for node in present], modulus)
    for node in present:
        own = naive(own_key(node), len(expected), modulus)
        expected = [(value + s) % modulus for value, s in zip(expected, own, strict=True)]
        for absent in set(nodes) - set(present):
            stream = naive(keys_of(node, nodes)[absent], len(expected), modulus)
            sign = 1 if node < absent else -1
            expected = [(value + sign * s) % modulus for value, s in zip(expected, stream, strict=True)]
    assert left == expected


@pytest.mark.parametrize("modulus", [65_557**3, (1 << 59) - 1, (1 << 60) - 1])
@pytest.mark.parametrize("clients", [1, 2, 8, 9, 10, 17, 18, 40])
def test_the_masks_of_many_pairs_and_a_large_modulus_are_added_exactly(clients: int, modulus: int) -> None:
    nodes = list(range(clients))
    for node in {0, clients // 2, clients - 1}:
        expected = naive(own_key(node), 3, modulus)
        for peer, key in keys_of(node, nodes).items():
            sign = 1 if node < peer else -1
            expected = [(x + sign * s) % modulus for x, s in zip(expected, naive(key, 3, modulus), strict=True)]
        made = mask(3, node, own_key(node), keys_of(node, nodes), modulus)
        assert made.tolist() == expected
        assert made.dtype == np.uint64


@pytest.mark.parametrize("clients", [2, 8, 9, 10, 17, 18, 33])
def test_no_stream_is_large_enough_to_leave_a_word(clients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    t = (1 << 60) - 1
    for value, node in ((t - 1, 0), (0, clients - 1)):  # the lowest adds t - 1, the highest subtracts 0
        monkeypatch.setattr(pairwise, "keystream", lambda key, count, modulus, v=value: np.full(count, v, np.uint64))
        peers = {peer: bytes(32) for peer in range(clients) if peer != node}
        sign = 1 if node == 0 else -1
        assert mask(2, node, bytes(32), peers, t).tolist() == [value * (1 + sign * (clients - 1)) % t] * 2


@given(st.integers(2, 5), st.integers(1, 4))
def test_a_multiple_of_one_member_keeps_a_multiple_of_its_mask(factor: int, member: int) -> None:
    modulus, nodes = (1 << 59) - 1, [1, 2, 3, 4]
    masked = mask(3, member, own_key(member), keys_of(member, nodes), modulus)
    multiple = add([masked] * factor, modulus)
    assert multiple == [factor * value % modulus for value in masked.tolist()]
    assert 0 not in multiple


def test_another_announced_cohort_has_other_masks() -> None:
    nodes, other_cohort = [1, 2, 3], COHORT[::-1]
    one = mask(4, 1, own_key(1), keys_of(1, nodes), 1 << 50)
    own = mask(4, 1, own_key(1, other_cohort), keys_of(1, nodes), 1 << 50)
    pairs = mask(4, 1, own_key(1), keys_of(1, nodes, other_cohort), 1 << 50)
    assert len({*one.tolist(), *own.tolist(), *pairs.tolist()}) == 12


def test_a_member_without_pairs_is_masked_by_its_own_stream() -> None:
    assert mask(5, 1, own_key(1), {}, 1 << 50).tolist() == keystream(own_key(1), 5, 1 << 50).tolist()


def test_of_the_two_ends_the_lower_number_adds_and_the_higher_subtracts() -> None:
    key, own = bytes(range(32)), own_key(4)
    stream, bare = (keystream(each, 3, 1000).tolist() for each in (key, own))
    assert mask(3, 4, own, {9: key}, 1000).tolist() == [(b + s) % 1000 for b, s in zip(bare, stream, strict=True)]
    assert mask(3, 9, own, {4: key}, 1000).tolist() == [(b - s) % 1000 for b, s in zip(bare, stream, strict=True)]


# --- keys --------------------------------------------------------------------------------------


def test_both_ends_of_a_pair_derive_the_same_key_and_no_other_pair_does() -> None:
    members = {node: secrets(node) for node in (2, 300, 70_000)}
    keys = {
        (a, b): pair_key(members[a].shared(members[b].public), COHORT, (a, b))
        for a in members
        for b in members
        if a != b
    }
    assert all(keys[a, b] == keys[b, a] for a, b in keys)
    assert len(set(keys.values())) == 3
    assert {len(key) for key in keys.values()} == {32}


@given(KEYS, KEYS, st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1)))
def test_the_key_depends_on_the_secret_the_cohort_and_the_pair(
    secret: bytes, cohort: bytes, nodes: tuple[int, int]
) -> None:
    key = pair_key(secret, cohort, nodes)
    assert key == pair_key(secret, cohort, nodes[::-1])
    assert key != pair_key(secret, bytes([cohort[0] ^ 1]) + cohort[1:], nodes)
    assert key != pair_key(bytes([secret[0] ^ 1]) + secret[1:], cohort, nodes)
    assert key != pair_key(secret, cohort, (nodes[0] ^ 1, nodes[1]))


@given(KEYS, KEYS, st.integers(0, (1 << 32) - 1))
def test_the_key_of_a_nodes_own_mask_depends_on_the_seed_the_cohort_and_the_node(
    seed: bytes, cohort: bytes, node: int
) -> None:
    key = self_key(seed, cohort, node)
    assert len(key) == 32
    assert key != self_key(bytes([seed[0] ^ 1]) + seed[1:], cohort, node)
    assert key != self_key(seed, bytes([cohort[0] ^ 1]) + cohort[1:], node)
    assert key != self_key(seed, cohort, node ^ 1)
    assert key != pair_key(seed, cohort, (node, node))


# --- the stream --------------------------------------------------------------------------------


@given(KEYS, st.integers(0, 40), MODULI)
def test_the_stream_is_chacha20_without_the_words_that_would_bias_it(key: bytes, count: int, modulus: int) -> None:
    stream = keystream(key, count, modulus)
    assert stream.dtype == np.uint64
    assert stream.tolist() == naive(key, count, modulus)


@given(KEYS, st.integers(0, 60), st.integers(1, 8), MODULI | st.just(3 << 61))
def test_a_stream_that_is_drawn_in_parts_is_the_same(key: bytes, count: int, part: int, modulus: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pairwise, "_AT_ONCE", part)
        assert keystream(key, count, modulus).tolist() == naive(key, count, modulus)


@pytest.mark.parametrize("count", [32_767, 32_768, 32_769, 70_000])
def test_a_long_stream_is_the_same_as_its_definition(count: int) -> None:
    modulus = (1 << 59) - 55  # a word in some hundred million is passed over, so every part is whole
    stream, words = keystream(bytes(32), count, modulus), Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None)
    expected = np.frombuffer(words.encryptor().update(bytes(8 * count)), "<u8") % np.uint64(modulus)
    assert np.array_equal(stream, expected)


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.booleans()), max_size=40), st.integers(0, 3), MODULI)
def test_streams_are_added_and_subtracted_one_by_one(keys: list[tuple[bytes, bool]], size: int, modulus: int) -> None:
    expected = [0] * size
    for key, subtracted in keys:
        sign = -1 if subtracted else 1
        expected = [(x + sign * s) % modulus for x, s in zip(expected, naive(key, size, modulus), strict=True)]
    assert streams(size, keys, modulus).tolist() == expected


@given(KEYS, st.integers(0, 300), st.integers(0, 300), MODULI)
def test_a_shorter_stream_is_the_beginning_of_a_longer_one(key: bytes, a: int, b: int, modulus: int) -> None:
    short, long = sorted((a, b))
    assert keystream(key, long, modulus)[:short].tolist() == keystream(key, short, modulus).tolist()


@given(KEYS)
@settings(max_examples=20)
def test_a_modulus_that_rejects_every_fourth_word_still_fills_the_stream(key: bytes) -> None:
    modulus = 3 << 61  # 2^64 is 2 2/3 times this
    stream = keystream(key, 500, modulus)
    assert stream.tolist() == naive(key, 500, modulus)
    assert stream.size == 500


class _Words:
    """A cipher whose stream is these words, then zeros."""

    def __init__(self, *words: int) -> None:
        self._left = struct.pack(f"<{len(words)}Q", *words)

    def encryptor(self) -> "_Words":
        return self

    def update(self, zeros: bytes) -> bytes:
        data, self._left = self._left[: len(zeros)], self._left[len(zeros) :]
        return data.ljust(len(zeros), b"\0")


@pytest.mark.parametrize("modulus", [3, 10, 65_557**3, (1 << 59) - 1, 1 << 59])
def test_exactly_the_words_above_the_largest_multiple_are_passed_over(
    modulus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiple = (1 << 64) // modulus * modulus
    stream = [multiple - 1, *([multiple, (1 << 64) - 1] if multiple < 1 << 64 else []), 5 % modulus]
    monkeypatch.setattr(pairwise, "Cipher", lambda *_, **__: _Words(*stream))
    assert keystream(bytes(32), 3, modulus).tolist() == [modulus - 1, 5 % modulus, 0]


def test_the_stream_of_the_zero_key_is_the_one_of_rfc_8439() -> None:
    # Appendix A.1, test vector 1; the modulus 2^63 takes the highest bit of each word away.
    block = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    expected = [word & ((1 << 63) - 1) for word in struct.unpack("<4Q", block)]
    assert keystream(bytes(32), 4, 1 << 63).tolist() == expected


@pytest.mark.parametrize("modulus", [2, 3, 7])
def test_every_value_of_a_small_modulus_is_as_frequent_as_the_others(modulus: int) -> None:
    counts = np.bincount(keystream(bytes(range(32)), 60_000, modulus).astype(np.int64), minlength=modulus)
    assert counts.size == modulus
    assert abs(counts - 60_000 / modulus).max() < 5 * (60_000 / modulus) ** 0.5
