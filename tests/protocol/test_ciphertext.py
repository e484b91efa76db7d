"""``protocol.ciphertext``: SEAL's objects are built here from checked residues, and adding them adds plaintexts."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_client.cipher import RoundCipher
from protocol.bits import Words
from protocol.ciphertext import Seal, Summer, blocks, restore, truncate
from protocol.errors import ConfigError, MalformedMessage
from protocol.grid import Grid
from protocol.pairwise import keystream
from protocol.parameters import DEGREE, MODULUS, SEED_BYTES, Parameters
from tests.factories import dummy_seeds
from tests.protocol.frames import aggregate

PARAMETERS = Parameters(Grid(16, 10))
KEY_SEED = bytes(range(32))
RESIDUES = st.integers(0, MODULUS - 1) | st.sampled_from([0, 1, MODULUS - 2, MODULUS - 1])
TOO_LARGE = [MODULUS, MODULUS + 1, (1 << 60) - 1, (1 << 64) - 1]


@pytest.fixture(scope="module")
def machine() -> Iterator[Seal]:
    made = Seal(PARAMETERS)
    yield made
    made.close()


def words(*values: int) -> Words:
    return np.array(values, np.uint64)


def half(*values: int) -> Words:
    """A first half that begins with these residues."""
    return np.concatenate([words(*values), np.zeros(DEGREE - len(values), np.uint64)])


def opened(first: Words, second: "tuple[tuple[bytes, ...], ...] | Words", clients: int) -> list[int]:
    """What the first ``first.size`` slots of a sum decrypt to."""
    total = aggregate(second, clients=clients, first=truncate(first, PARAMETERS.drop_down))
    with RoundCipher(PARAMETERS, KEY_SEED) as cipher:
        slots: list[int] = cipher.decrypt(total).tolist()
    return slots


# --- adding ------------------------------------------------------------------------------------


@given(clients=st.integers(1, 10), used=st.sampled_from([1, 2, 50, DEGREE, DEGREE + 1, 2 * DEGREE]), key=st.binary())
@settings(max_examples=12, deadline=None)
def test_adding_ciphertexts_adds_plaintexts(machine: Seal, clients: int, used: int, key: bytes) -> None:
    t = PARAMETERS.plain_modulus
    summer, seeds, total = Summer(machine), [], np.zeros(used, np.uint64)
    for number in range(clients):
        slots = keystream(struct.pack("<I", number) + key.ljust(28, b"\0")[:28], used, t)
        total = (total + slots) % np.uint64(t)
        with RoundCipher(PARAMETERS, KEY_SEED) as cipher:
            sent, own = cipher.encrypt(slots)
        assert sent.size == used
        summer.add(restore(sent, PARAMETERS.drop_up), own)
        seeds.append(own)
    first, second = summer.halves()
    assert first.shape == second.shape == (-(-used // DEGREE), DEGREE)
    used_first = first.ravel()[:used]
    assert opened(used_first, second, clients) == total.tolist()
    assert opened(used_first, tuple(zip(*seeds, strict=True)), clients) == total.tolist()


@given(clients=st.integers(1, 10), used=st.sampled_from([1, 50, DEGREE, DEGREE + 1]), key=st.binary(max_size=31))
@settings(max_examples=10, deadline=None)
def test_masks_that_are_taken_from_a_sum_are_gone_from_what_it_decrypts_to(
    machine: Seal, clients: int, used: int, key: bytes
) -> None:
    t = PARAMETERS.plain_modulus
    slots, masks = (keystream(bytes([which]) + key.ljust(31, b"\0"), used, t) for which in (0, 1))
    summer, seeds = Summer(machine), []
    with RoundCipher(PARAMETERS, KEY_SEED) as cipher:
        for number in range(clients):
            hidden = (slots + masks) % np.uint64(t) if number == 0 else np.zeros(used, np.uint64)
            sent, own = cipher.encrypt(hidden)
            summer.add(restore(sent, PARAMETERS.drop_up), own)
            seeds.append(own)
    kept = summer.halves()
    summer.unmask(masks)
    first, second = summer.halves()
    assert second.tolist() == kept[1].tolist()
    for form in (second, tuple(zip(*seeds, strict=True))):
        assert opened(first.ravel()[:used], form, clients) == slots.tolist()


def test_a_sum_that_was_kept_goes_on_as_if_it_never_stopped(machine: Seal) -> None:
    one, used = Summer(machine), DEGREE + 1
    one.add(keystream(KEY_SEED, used, MODULUS), dummy_seeds(2))
    other = Summer(machine, one.halves())
    for summer in (one, other):
        summer.add(keystream(bytes(32), used, MODULUS), dummy_seeds(2)[::-1])
        summer.unmask(keystream(bytes(32), used, PARAMETERS.plain_modulus))
    kept, gone_on = one.halves(), other.halves()
    assert [half.tolist() for half in gone_on] == [half.tolist() for half in kept]
    with pytest.raises(MalformedMessage, match="1 ciphertexts with 1 seeds do not fit the sum"):
        other.add(words(1), dummy_seeds(1))


@given(st.lists(hnp.arrays(np.uint64, 3, elements=RESIDUES), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_first_halves_are_added_modulo_q_and_unused_coefficients_stay_zero(machine: Seal, firsts: list[Words]) -> None:
    summer = Summer(machine)
    for first in firsts:
        summer.add(first, dummy_seeds(1))
    sums = [sum(int(first[i]) for first in firsts) % MODULUS for i in range(3)]
    assert summer.halves()[0].tolist() == [[*sums, *[0] * (DEGREE - 3)]]


@given(
    clients=st.integers(1, 4),
    used=st.sampled_from([1, 50, DEGREE, DEGREE + 1, 2 * DEGREE]),
    key=st.binary(max_size=31),
)
@settings(max_examples=12, deadline=None)
def test_without_second_halves_the_first_ones_are_added_and_unmasked_all_the_same(
    machine: Seal, clients: int, used: int, key: bytes
) -> None:
    firsts = [keystream(bytes([client]) + key.ljust(31, b"\0"), used, MODULUS) for client in range(clients)]
    masks = keystream(b"\xff" + key.ljust(31, b"\0"), used, PARAMETERS.plain_modulus)
    sums = []
    for whole in (True, False):
        summer = Summer(machine, whole=whole)
        for first in firsts:
            summer.add(first, dummy_seeds(-(-used // DEGREE)))
        again = Summer(machine, summer.halves())
        again.unmask(masks)
        sums.append((summer.halves()[0].tolist(), again.halves()[0].tolist()))
    assert sums[0] == sums[1]


@pytest.mark.parametrize("whole", [True, False])
def test_residues_that_add_up_to_nothing_are_added_like_others(machine: Seal, *, whole: bool) -> None:
    summer, used = Summer(machine, whole=whole), DEGREE + 1  # SEAL itself refuses sums that hide nothing
    for residue in (0, 0, 5, MODULUS - 5):
        summer.add(np.full(used, residue, np.uint64), dummy_seeds(2))
    assert not summer.halves()[0].any()
    summer.add(np.full(used, 7, np.uint64), dummy_seeds(2))
    assert summer.halves()[0].ravel()[:used].tolist() == [7] * used


def test_second_halves_are_a_function_of_the_seed_alone(machine: Seal) -> None:
    one, other, both = Summer(machine), Summer(machine), Summer(machine)
    first_seed, second_seed = dummy_seeds(2)
    one.add(words(1), [first_seed])
    other.add(words(7, 7), [second_seed])
    both.add(words(3), [second_seed])
    both.add(words(4), [first_seed])
    a, b = one.halves()[1], other.halves()[1]
    assert a.max() < MODULUS
    assert both.halves()[1].tolist() == ((a + b) % np.uint64(MODULUS)).tolist()
    assert (a != b).any()


@pytest.mark.parametrize(("used", "seeds"), [(1, 0), (1, 2), (DEGREE, 2), (DEGREE + 1, 1), (0, 1)])
def test_a_seed_too_few_or_too_many_is_refused(machine: Seal, used: int, seeds: int) -> None:
    with pytest.raises(MalformedMessage, match=f"with {seeds} seeds do not fit"):
        Summer(machine).add(np.zeros(used, np.uint64), dummy_seeds(seeds))


def test_a_contribution_of_another_number_of_ciphertexts_is_refused(machine: Seal) -> None:
    summer = Summer(machine)
    summer.add(words(1), dummy_seeds(1))
    with pytest.raises(MalformedMessage, match="2 ciphertexts with 2 seeds do not fit the sum"):
        summer.add(np.zeros(DEGREE + 1, np.uint64), dummy_seeds(2))


def test_a_refused_contribution_leaves_the_sum_as_it_was(machine: Seal) -> None:
    summer, bad = Summer(machine), np.ones(DEGREE + 1, np.uint64)
    summer.add(np.full(DEGREE + 1, 5, np.uint64), dummy_seeds(2))
    before = [part.tolist() for part in summer.halves()]
    bad[-1] = MODULUS  # the first of its two ciphertexts is fine
    with pytest.raises(MalformedMessage, match="not below the modulus"):
        summer.add(bad, dummy_seeds(2))
    one, other = dummy_seeds(2)
    with pytest.raises(MalformedMessage, match="64 bytes long"):
        summer.add(np.ones(DEGREE + 1, np.uint64), [one, other[:-1]])
    assert [part.tolist() for part in summer.halves()] == before


def test_blocks_are_filled_up_with_zeros() -> None:
    assert blocks(words(5, 6)).tolist() == [half(5, 6).tolist()]
    assert blocks(np.arange(DEGREE, dtype=np.uint64)).shape == (1, DEGREE)
    assert blocks(np.ones(DEGREE + 1, np.uint64)).sum(axis=1).tolist() == [DEGREE, 1]
    assert blocks(np.zeros(0, np.uint64)).shape == (0, DEGREE)


# --- leaving bits out --------------------------------------------------------------------------


@given(st.lists(RESIDUES, max_size=20), st.integers(0, 59))
def test_restoring_what_was_truncated_is_off_by_half_at_most(residues: list[int], drop: int) -> None:
    back = restore(truncate(np.array(residues, np.uint64), drop), drop)
    assert back.dtype == np.uint64
    for old, new in zip(residues, back.tolist(), strict=True):
        assert 0 <= new < MODULUS
        error = (new - old + MODULUS // 2) % MODULUS - MODULUS // 2
        assert -(1 << drop) < 2 * error <= (1 << drop if drop else 0)


@given(st.integers(0, 59), st.booleans())
def test_exactly_the_heads_of_residues_are_restored(drop: int, inside: bool) -> None:
    head = (MODULUS - 1) >> drop
    if inside:
        assert restore(words(0, head), drop)[0] == (1 << drop >> 1)
    else:
        with pytest.raises(MalformedMessage, match="not below the modulus"):
            restore(words(0, head + 1), drop)


def test_nothing_is_restored_of_nothing() -> None:
    assert restore(np.zeros(0, np.uint64), 8).tolist() == []


# --- SEAL's objects ----------------------------------------------------------------------------


@given(
    hnp.arrays(np.uint64, 2, elements=RESIDUES),
    hnp.arrays(np.uint64, 2, elements=RESIDUES),
)
@settings(max_examples=20, deadline=None)
def test_halves_gives_what_ciphertext_was_given(machine: Seal, first: Words, second: Words) -> None:
    made = machine.halves(machine.ciphertext(half(*first.tolist()), half(*second.tolist())))
    assert [part.tolist() for part in made] == [half(*first.tolist()).tolist(), half(*second.tolist()).tolist()]


@given(st.lists(st.integers(0, PARAMETERS.plain_modulus - 1), max_size=5))
@settings(max_examples=20, deadline=None)
def test_a_plaintext_comes_back_as_it_was_written(machine: Seal, slots: list[int]) -> None:
    plain = machine.load(seal.Plaintext(), machine.plaintext(half(*slots)))
    assert machine.plaintext_words(plain).tolist() == half(*slots).tolist()


@pytest.mark.parametrize("residue", TOO_LARGE)
@pytest.mark.parametrize("place", [0, 1, DEGREE - 1])
def test_a_residue_that_is_not_below_the_modulus_is_refused(machine: Seal, residue: int, place: int) -> None:
    bad, good = np.zeros(DEGREE, np.uint64), np.zeros(DEGREE, np.uint64)
    bad[place] = residue
    for first, second in ((bad, good), (good, bad)):
        with pytest.raises(MalformedMessage, match="not below the modulus"):
            machine.ciphertext(first, second)
    with pytest.raises(MalformedMessage, match="not below the modulus"):
        machine.ciphertext(bad, dummy_seeds(1)[0])


@pytest.mark.parametrize("length", [0, 1, SEED_BYTES - 1, SEED_BYTES + 1, 2 * SEED_BYTES])
def test_a_seed_of_another_length_is_refused(machine: Seal, length: int) -> None:
    with pytest.raises(MalformedMessage, match="64-byte seed"):
        machine.ciphertext(half(1), bytes(length))


@pytest.mark.parametrize("size", [0, 1, DEGREE - 1, DEGREE + 1, 2 * DEGREE])
def test_a_half_of_another_length_is_refused(machine: Seal, size: int) -> None:
    with pytest.raises(MalformedMessage, match="N residues"):
        machine.ciphertext(np.zeros(size, np.uint64), dummy_seeds(1)[0])
    with pytest.raises(MalformedMessage, match="twice N residues"):
        machine.ciphertext(half(1), np.zeros(size, np.uint64))


class _Saved:
    """Something that SEAL might save without compressing it."""

    def save(self, path: str) -> None:
        Path(path).write_bytes(struct.pack("<HB2sBHQ", 0xA15E, 16, b"\x04\x01", 0, 0, 20) + b"body")


def test_a_body_that_seal_did_not_compress_is_taken_as_it_is(machine: Seal) -> None:
    assert machine.save(_Saved(), 4) == b"body"


def test_what_passes_through_the_file_in_memory_does_not_stay_there(machine: Seal) -> None:
    machine.halves(machine.ciphertext(half(1), half(2)))
    assert os.fstat(machine._file).st_size == 0


class _Broken:
    """Something that cannot be loaded."""

    def load(self, context: Any, path: str) -> None:
        raise ValueError("no")


def test_a_failed_load_leaves_nothing_in_the_file_in_memory_either(machine: Seal) -> None:
    with pytest.raises(ValueError, match="no"):
        machine.load(_Broken(), b"key bytes")
    assert os.fstat(machine._file).st_size == 0


def test_closing_gives_the_file_in_memory_back() -> None:
    made = Seal(PARAMETERS)
    assert str(Path(made._path).readlink()) == "/memfd:pruneseal (deleted)"
    made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made._file)


class _Unfit(Parameters):
    """Parameters whose plaintext modulus is the ciphertext modulus itself."""

    @property
    def plain_modulus(self) -> int:
        return MODULUS


def test_parameters_that_seal_refuses_are_our_own_mistake() -> None:
    with pytest.raises(ConfigError, match="SEAL refuses the parameters"):
        Seal(_Unfit(Grid(16, 10)))


def test_a_system_without_files_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(ConfigError, match="memfd_create"):
        Seal(PARAMETERS)
