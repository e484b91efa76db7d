"""``protocol.pairwise``: blinding that cancels in exactly one sum."""

import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import pairwise
from protocol.lanes import Slots
from protocol.pairwise import blind, keystream, pair_key
from tests.factories import blinding_key, kits, plan

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
    """A modulus, the slots of each node, and the same slots blinded for the cohort of all of them."""
    modulus = draw(MODULI)
    nodes = draw(st.lists(st.integers(0, (1 << 32) - 1), min_size=2, max_size=6, unique=True))
    size = draw(st.integers(0, 5))
    plain = {
        node: np.array(draw(st.lists(st.integers(0, modulus - 1), min_size=size, max_size=size)), np.uint64)
        for node in nodes
    }
    return modulus, plain, {node: blind(plain[node], node, keys_of(node, nodes), modulus) for node in nodes}


def keys_of(node: int, nodes: list[int], cohort: bytes = COHORT) -> dict[int, bytes]:
    """The keys that a node shares with the others; the secret of a pair is made of its numbers."""
    return {
        peer: pair_key(struct.pack("<II", *sorted((node, peer))) * 4, cohort, (node, peer))
        for peer in nodes
        if peer != node
    }


def add(parts: list[Slots], modulus: int) -> list[int]:
    return [sum(column) % modulus for column in zip(*(part.tolist() for part in parts), strict=True)]


@given(federations())
def test_the_blinding_cancels_in_the_sum_over_the_cohort(case: tuple[int, dict[int, Slots], dict[int, Slots]]) -> None:
    modulus, plain, blinded = case
    assert add(list(blinded.values()), modulus) == add(list(plain.values()), modulus)
    assert all((slots < modulus).all() and slots.dtype == np.uint64 for slots in blinded.values())


@pytest.mark.slow
@given(federations(), st.data())
def test_in_the_sum_over_a_subset_the_stream_of_every_open_pair_is_left(
    case: tuple[int, dict[int, Slots], dict[int, Slots]], data: st.DataObject
) -> None:
    modulus, plain, blinded = case
    nodes = list(plain)
    present = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=len(nodes) - 1, unique=True))
    left = add([blinded[node] for node in present], modulus)
    expected = add([plain[node] for node in present], modulus)
    for node in present:
        for absent in set(nodes) - set(present):
            stream = naive(keys_of(node, nodes)[absent], len(expected), modulus)
            sign = 1 if node < absent else -1
            expected = [(value + sign * s) % modulus for value, s in zip(expected, stream, strict=True)]
    assert left == expected


@pytest.mark.parametrize("modulus", [65_557**3, (1 << 59) - 1, (1 << 60) - 1])
@pytest.mark.parametrize("clients", [2, 8, 9, 10, 17, 18, 40])
def test_the_blinding_of_many_pairs_and_a_large_modulus_is_added_exactly(clients: int, modulus: int) -> None:
    nodes, top = list(range(clients)), np.full(3, modulus - 1, np.uint64)
    for node in (0, clients // 2, clients - 1):
        expected = [modulus - 1] * 3
        for peer, key in keys_of(node, nodes).items():
            sign = 1 if node < peer else -1
            expected = [(x + sign * s) % modulus for x, s in zip(expected, naive(key, 3, modulus), strict=True)]
        assert blind(top, node, keys_of(node, nodes), modulus).tolist() == expected
    blinded = [blind(top, node, keys_of(node, nodes), modulus) for node in nodes]
    assert add(blinded, modulus) == [-clients % modulus] * 3


@pytest.mark.parametrize("clients", [2, 9, 10, 17, 18, 33])
def test_no_stream_is_large_enough_to_leave_a_word(clients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    t = (1 << 60) - 1
    for value, node in ((t - 1, 0), (0, clients - 1)):  # the lowest adds t - 1, the highest subtracts 0
        monkeypatch.setattr(pairwise, "keystream", lambda key, count, modulus, v=value: np.full(count, v, np.uint64))
        peers = {peer: bytes(32) for peer in range(clients) if peer != node}
        sign = 1 if node == 0 else -1
        assert (
            blind(np.full(2, t - 1, np.uint64), node, peers, t).tolist()
            == [(t - 1 + sign * value * (clients - 1)) % t] * 2
        )


@given(st.integers(2, 5), st.integers(1, 4))
def test_a_multiple_of_one_member_keeps_a_multiple_of_its_blinding(factor: int, member: int) -> None:
    modulus, nodes, zeros = (1 << 59) - 1, [1, 2, 3, 4], np.zeros(3, np.uint64)
    blinded = blind(zeros, member, keys_of(member, nodes), modulus)
    multiple = add([blinded] * factor, modulus)
    assert multiple == [factor * value % modulus for value in blinded.tolist()]
    assert 0 not in multiple


def test_another_announced_cohort_has_other_blinding() -> None:
    nodes, zeros = [1, 2, 3], np.zeros(4, np.uint64)
    one = blind(zeros, 1, keys_of(1, nodes, COHORT), 1 << 50)
    other = blind(zeros, 1, keys_of(1, nodes, COHORT[::-1]), 1 << 50)
    assert not set(one.tolist()) & set(other.tolist())


def test_a_member_alone_is_not_blinded() -> None:
    slots = np.array([5, 6], np.uint64)
    assert blind(slots, 1, {}, 7).tolist() == [5, 6]


def test_blinding_leaves_the_clients_own_slots_as_they_were() -> None:
    slots = np.array([5, 6], np.uint64)
    blind(slots, 1, keys_of(1, [1, 2]), 7)
    assert slots.tolist() == [5, 6]


def test_of_the_two_ends_the_lower_number_adds_and_the_higher_subtracts() -> None:
    key, zeros = bytes(range(32)), np.zeros(3, np.uint64)
    stream = keystream(key, 3, 1000)
    assert blind(zeros, 4, {9: key}, 1000).tolist() == stream.tolist()
    assert blind(zeros, 9, {4: key}, 1000).tolist() == [(1000 - s) % 1000 for s in stream.tolist()]


# --- keys --------------------------------------------------------------------------------------


def test_both_ends_of_a_pair_derive_the_same_key_and_no_other_pair_does() -> None:
    members = kits(plan(), (2, 300, 70_000))
    keys = {(a, b): pair_key(members[a].pair_secret(b), COHORT, (a, b)) for a in members for b in members if a != b}
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


def test_the_secret_of_a_pair_is_x25519() -> None:
    members = kits(plan(), (2, 3))
    assert members[2].pair_secret(3) == blinding_key(3).exchange(blinding_key(2).public_key())


# --- the stream --------------------------------------------------------------------------------


@given(KEYS, st.integers(0, 40), MODULI)
def test_the_stream_is_chacha20_without_the_words_that_would_bias_it(key: bytes, count: int, modulus: int) -> None:
    stream = keystream(key, count, modulus)
    assert stream.dtype == np.uint64
    assert stream.tolist() == naive(key, count, modulus)


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
