"""``edge_client.cipher``: what is encrypted and added decrypts to the sum, exactly, for all clients of a plan."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.summation import CohortSum
from edge_client.cipher import RoundCipher, _ternary
from protocol.attendance import Attendance
from protocol.bits import Words
from protocol.cohort import Cohort
from protocol.errors import MalformedMessage
from protocol.figures import NOTHING
from protocol.grid import Grid
from protocol.lanes import Slots
from protocol.parameters import DEGREE, MODULUS, SEED_BYTES, Parameters
from protocol.plan import Plan
from protocol.wire import Aggregate, Contribution, decode_aggregate, encode_aggregate
from tests.edge_client.federation import RUN
from tests.edge_client.tampering import ciphertext_sum

KEY = bytes(range(32))


def random_slots(seed: int, size: int, modulus: int) -> Slots:
    return np.random.default_rng(seed).integers(0, modulus, size, dtype=np.uint64)


def sum_modulo(parts: list[Slots], modulus: int) -> list[int]:
    """With Python's integers, in which nothing can overflow."""
    return [sum(column) % modulus for column in zip(*(part.tolist() for part in parts), strict=True)]


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 24),
    clients=st.integers(1, 6),
    size=st.integers(1, 40) | st.sampled_from([DEGREE - 1, DEGREE, DEGREE + 1]),
    key=st.binary(min_size=32, max_size=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_sum_of_ciphertexts_decrypts_to_the_sum_modulo_t(
    bits: int, clients: int, size: int, key: bytes, seed: int
) -> None:
    p = Parameters(Grid(bits, clients))
    parts = [random_slots(seed + k, size, p.plain_modulus) for k in range(clients)]
    with RoundCipher(p, key) as cipher:
        total = ciphertext_sum(p, [cipher.encrypt(part) for part in parts])
        assert cipher.decrypt(total).tolist() == sum_modulo(parts, p.plain_modulus)


@pytest.mark.parametrize("fill", ["nothing", "everything", "half"])
def test_the_extreme_plaintexts_decrypt_exactly(fill: str) -> None:
    p = Parameters(Grid(16, 10))
    t = p.plain_modulus
    value = {"nothing": 0, "everything": t - 1, "half": t // 2}[fill]
    slots = np.full(DEGREE, value, np.uint64)
    with RoundCipher(p, KEY) as cipher:
        total = ciphertext_sum(p, [cipher.encrypt(slots) for _ in range(10)])
        assert cipher.decrypt(total).tolist() == [10 * value % t] * DEGREE


def large_cohort(plan: Plan, clients: int) -> tuple[Aggregate, list[int]]:
    """The aggregator's sum of many contributions, unmasked and unsigned, and the true one."""
    p = plan.parameters
    fields: dict[str, Any] = {
        "run": RUN,
        "round": 1,
        "values": 3 * 50 - 2,
        "votes": 0,
        "plan": bytes(32),
        "key": bytes(16),
    }
    digests: dict[str, Any] = dict.fromkeys(("model", "support", "invited", "exchange", "seed", "dealt"), bytes(32))
    members = tuple(
        Attendance(**fields, attempt=1, node=k, samples=1, **digests, figures=NOTHING, spoiled=0, memory=frozenset())
        for k in range(clients)
    )
    parts = [random_slots(k, p.slots(3 * 50 - 2, 0), p.plain_modulus) for k in range(clients)]
    total = CohortSum(Cohort(members, (b"",) * clients), plan)
    with RoundCipher(p, KEY) as cipher:
        for k, part in enumerate(parts):
            first, seeds = cipher.encrypt(part)
            head: dict[str, Any] = {**fields, "attempt": 1, "node": k, "cohort": bytes(32), "support": bytes(32)}
            total.add(Contribution(**head, held=(), seeds=seeds, first=first))
    masked = total.masked(1, frozenset(), {})
    total.close()
    unmasked = np.zeros(p.slots(3 * 50 - 2, 0), np.uint64)
    (aggregate,) = masked.aggregates([unmasked], plan, [bytes(32)], b"")
    return aggregate, sum_modulo(parts, p.plain_modulus)


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "by_seeds"), [(479, True), (480, False)])
def test_the_downlink_carries_seeds_or_the_second_half_whichever_is_shorter_and_both_decrypt(
    clients: int, by_seeds: bool
) -> None:
    plan = Plan(bits=12, max_cohort=480)
    p = plan.parameters
    assert (p.fields, p.drop_up) == (3, 14)
    aggregate, true = large_cohort(plan, clients)
    assert isinstance(aggregate.second, tuple) == by_seeds
    assert len(aggregate.second[0]) == (clients if by_seeds else DEGREE)
    received = decode_aggregate(encode_aggregate(aggregate, p), p)
    with RoundCipher(p, KEY) as cipher:
        assert cipher.decrypt(received).tolist() == true


class Whole(Parameters):
    """The same parameters, but every bit of a residue travels."""

    @property
    def drop_up(self) -> int:
        return 0

    @cached_property
    def drop_down(self) -> int:
        return 0


@pytest.mark.parametrize(("bits", "clients"), [(16, 10), (2, 6), (12, 60), (24, 3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_full_cohort_decrypts_also_where_every_dropped_bit_errs_to_the_same_side(
    bits: int, clients: int, sign: int
) -> None:
    real, p = Parameters(Grid(bits, clients)), Whole(Grid(bits, clients))
    slots = random_slots(0, 300, p.plain_modulus)
    up, down = (1 << real.drop_up) // 2, (1 << real.drop_down) // 2

    def summed(error: int) -> list[int]:
        def shifted(first: Words, by: int) -> Words:
            return np.array([(int(residue) + by) % MODULUS for residue in first], np.uint64)

        parts = [cipher.encrypt(slots) for _ in range(clients)]
        total = ciphertext_sum(p, [(shifted(first, sign * error * up), seeds) for first, seeds in parts])
        slots_of_sum = cipher.decrypt(replace(total, first=shifted(total.first, sign * error * down)))
        return [int(slot) for slot in slots_of_sum]

    with RoundCipher(p, KEY) as cipher:
        assert summed(error=1) == sum_modulo([slots] * clients, p.plain_modulus)
        # The bound is not idle: at four times the error no slot decrypts.
        assert not set(summed(error=4)) & set(sum_modulo([slots] * clients, p.plain_modulus))


def test_two_encryptions_of_the_same_slots_share_neither_seed_nor_residues() -> None:
    p = Parameters(Grid(16, 3))
    slots = random_slots(0, 500, p.plain_modulus)
    with RoundCipher(p, KEY) as cipher:
        (first, (seed,)), (again, (other,)) = cipher.encrypt(slots), cipher.encrypt(slots)
    assert seed != other
    assert not (first == again).any()
    assert int(first.max()) < 1 << p.width_up


def test_another_key_decrypts_to_nothing_of_the_slots() -> None:
    p = Parameters(Grid(16, 3))
    slots = random_slots(0, DEGREE, p.plain_modulus)
    with RoundCipher(p, KEY) as cipher, RoundCipher(p, bytes(32)) as other:
        total = ciphertext_sum(p, [cipher.encrypt(slots)])
        assert cipher.decrypt(total).tolist() == slots.tolist()
        assert not (other.decrypt(total) == slots).any()


def test_the_key_is_gone_when_the_context_is_left() -> None:
    p = Parameters(Grid(16, 3))
    with RoundCipher(p, KEY) as cipher:
        encrypted = cipher.encrypt(np.ones(3, np.uint64))
    total = ciphertext_sum(p, [encrypted])
    assert not hasattr(cipher, "_key")
    with pytest.raises(AttributeError, match="_key"):
        cipher.decrypt(total)


def test_the_secret_polynomial_is_ternary_balanced_and_the_same_for_every_client() -> None:
    words = _ternary(KEY, 97)
    assert words.tolist() == _ternary(KEY, 97).tolist()
    assert words.tolist() != _ternary(bytes(32), 97).tolist()
    values, counts = np.unique(words, return_counts=True)
    assert values.tolist() == [0, 1, 96]
    # A third of N each, within five standard deviations.
    assert np.abs(counts - DEGREE / 3).max() < 5 * (DEGREE * 2 / 9) ** 0.5


def test_two_contexts_of_one_seed_hold_one_key() -> None:
    p = Parameters(Grid(16, 3))
    slots = random_slots(0, 100, p.plain_modulus)
    with RoundCipher(p, KEY) as one, RoundCipher(p, KEY) as other:
        total = ciphertext_sum(p, [one.encrypt(slots), other.encrypt(slots)])
        assert one.decrypt(total).tolist() == other.decrypt(total).tolist() == sum_modulo([slots] * 2, p.plain_modulus)


def test_residues_that_are_not_below_the_modulus_are_refused() -> None:
    p = Parameters(Grid(16, 3))
    with RoundCipher(p, KEY) as cipher:
        total = ciphertext_sum(p, [cipher.encrypt(np.ones(3, np.uint64))])
        too_large = np.full(3, (MODULUS >> p.drop_down) + 1, np.uint64)
        assert isinstance(total.second, np.ndarray)
        for broken in (
            replace(total, first=too_large),
            replace(total, second=np.full_like(total.second, MODULUS)),
            replace(total, second=((bytes(SEED_BYTES - 1),),)),
        ):
            with pytest.raises(MalformedMessage):
                cipher.decrypt(broken)
