"""``protocol.parameters``: every sum that a plan admits decrypts, and no bit more is sent than that takes."""

from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_client.cipher import RoundCipher
from protocol.bits import Words
from protocol.ciphertext import Seal, Summer, restore, truncate
from protocol.errors import HeadroomError
from protocol.grid import Grid
from protocol.pairwise import keystream
from protocol.parameters import COEFFICIENT_BITS, DEGREE, MODULUS, SEED_BYTES, Parameters
from protocol.wire import contribution_length, decode_aggregate, encode_aggregate
from tests.protocol.frames import aggregate

FRESH = 21
KEY_SEED = bytes(range(32))
HALF = Fraction(1, 2)


def midpoint(drop: int) -> Fraction:
    """The largest error of putting the midpoint where ``drop`` bits were."""
    return Fraction(2) ** (drop - 1) if drop else Fraction(0)


def largest_error(p: Parameters, drop_up: int, drop_down: int) -> Fraction:
    """The left side of the law, for any number of bits left out."""
    return p.grid.clients * (FRESH + HALF + midpoint(drop_up)) + HALF + midpoint(drop_down)


def limit(modulus: int) -> Fraction:
    """The right side of the law: half the distance of two plaintexts."""
    return Fraction(MODULUS, 2 * modulus)


def admitted(modulus: int) -> Fraction:
    """What the code admits: a thousandth and one less than the limit."""
    return limit(modulus) * Fraction(999, 1000) - 1


GRIDS = [(2, 1), (2, 10), (8, 3), (12, 1000), (16, 10), (20, 64), (24, 3), (24, 1), (24, 100_000), (16, 10**8)]


@given(st.integers(2, 24), st.integers(1, 50) | st.integers(1, 10**8))
@example(2, 1)
@example(24, 1)
def test_a_full_cohorts_error_stays_below_half_a_step_of_the_plaintext(bits: int, clients: int) -> None:
    p = Parameters(Grid(bits, clients))
    assert largest_error(p, p.drop_up, p.drop_down) < limit(p.plain_modulus)


@pytest.mark.slow
@given(st.integers(2, 24), st.integers(1, 50) | st.integers(1, 10**8))
@settings(max_examples=50)
def test_nothing_more_could_be_left_out(bits: int, clients: int) -> None:
    p = Parameters(Grid(bits, clients))
    costs = [
        (Fraction(COEFFICIENT_BITS - drop, fields), fields)
        for fields in range(1, 9)
        for drop in range(COEFFICIENT_BITS)
        if largest_error(p, drop, 0) < admitted(p.grid.radix**fields)
    ]
    assert min(costs) == (Fraction(p.width_up, p.fields), p.fields)
    assert largest_error(p, p.drop_up, p.drop_down + 1) >= admitted(p.plain_modulus)


@pytest.mark.slow
@given(st.integers(2, 24), st.integers(1, 1000))
def test_the_parts_fit_one_another(bits: int, clients: int) -> None:
    p = Parameters(Grid(bits, clients))
    assert p.plain_modulus == p.grid.radix**p.fields == p.values.modulus == p.votes.modulus
    assert p.plain_modulus < 1 << 59
    assert (p.values.per_slot, p.values.radix) == (p.fields, p.grid.radix)
    assert p.votes.radix == clients + 1
    assert p.width_up + p.drop_up == p.width_down + p.drop_down == COEFFICIENT_BITS
    assert 1 <= p.width_up <= COEFFICIENT_BITS
    assert 1 <= p.width_down <= COEFFICIENT_BITS


@pytest.mark.parametrize("bits", [2, 8, 16, 20, 24])
def test_one_client_too_many_is_refused_when_the_parameters_are_built(bits: int) -> None:
    low, high = 1, 1 << 28
    while high - low > 1:
        middle = (low + high) // 2
        if FRESH * middle + middle * HALF + HALF < admitted(Grid(bits, middle).radix):
            low = middle
        else:
            high = middle
    largest = Parameters(Grid(bits, low))
    assert (largest.fields, largest.votes.per_slot) == (1, 1)
    assert largest_error(largest, largest.drop_up, largest.drop_down) < limit(largest.plain_modulus)
    with pytest.raises(HeadroomError, match=f"sums of {low + 1} clients at {bits} bits"):
        Parameters(Grid(bits, low + 1))


def test_the_worked_example_of_the_design() -> None:
    p = Parameters(Grid(16, 10))
    assert (p.grid.radix, p.fields, p.drop_up, p.width_up) == (65_557, 3, 8, 52)
    assert Parameters(Grid(12, 10)).width_up / Parameters(Grid(12, 10)).fields / 8 == 1.625


@pytest.mark.parametrize(("bits", "most"), [(16, 2.3), (12, 1.75)])
def test_a_contribution_with_its_count_and_tag_takes_no_more_bytes_than_the_design_allows(
    bits: int, most: float
) -> None:
    assert contribution_length(118_282, 0, 0, Parameters(Grid(bits, 10))) / 118_282 <= most


@pytest.mark.parametrize("clients", [(1 << 27) + 1, 1 << 62, 1 << 200])
def test_a_cohort_of_any_size_beyond_is_refused_at_once(clients: int) -> None:
    """No prime of such a size is looked for."""
    with pytest.raises(HeadroomError, match=f"sums of {clients} clients"):
        Parameters(Grid(2, clients))


@pytest.mark.parametrize(
    ("values", "votes", "slots", "blocks"),
    [
        (0, 0, 8 + 4, 1),
        (1, 0, 9 + 4, 1),
        (3, 0, 9 + 4, 1),
        (1, 1, 9 + 1 + 4, 1),
        (4, 4, 10 + 1 + 4, 1),
        (3 * (DEGREE - 4) - 24, 0, DEGREE, 1),
        (3 * (DEGREE - 4) - 24 + 1, 0, DEGREE + 1, 2),
        (3 * DEGREE, 3 * DEGREE, DEGREE + 8 + -(-3 * DEGREE // 13) + 4, 2),
    ],
)
def test_values_with_count_figures_votes_and_tag_take_whole_slots(
    values: int, votes: int, slots: int, blocks: int
) -> None:
    p = Parameters(Grid(16, 10))
    assert (p.fields, p.votes.per_slot, p.tags, p.trailing) == (3, 13, 4, 24)
    assert p.slots(values, votes) == slots
    assert p.blocks(values, votes) == blocks


@pytest.mark.parametrize(("bits", "clients"), GRIDS)
def test_seal_accepts_the_parameters_at_128_bits_of_security(bits: int, clients: int) -> None:
    machine = Seal(Parameters(Grid(bits, clients)))
    assert machine.context.parameters_set()
    assert str(machine.context.first_context_data().qualifiers().sec_level) == "SEC_LEVEL_TYPE.TC128"
    machine.close()


def test_the_modulus_is_the_one_that_seal_would_choose() -> None:
    assert [modulus.value() for modulus in seal.CoeffModulus.Create(DEGREE, [COEFFICIENT_BITS])] == [MODULUS]


# --- the edge of the bound ---------------------------------------------------------------------


def secret_key(machine: Seal) -> Any:
    """SEAL's form of the ternary key that ``KEY_SEED`` expands to."""
    t = machine.parameters.plain_modulus
    digits = keystream(KEY_SEED, DEGREE, 3)
    ternary = np.where(digits == 2, np.uint64(t - 1), digits)
    transformed = machine.load(seal.Plaintext(), machine.plaintext(ternary))
    seal.Evaluator(machine.context).transform_to_ntt_inplace(transformed, list(machine.context.first_parms_id()))
    words = machine.plaintext_words(transformed)
    return machine.load(seal.SecretKey(), machine.plaintext(words, machine.parms_id))


def times_key(second: Words) -> Words:
    """The second half times that key, modulo x^N + 1 and q: u64[N]."""
    q, digits = np.uint64(MODULUS), keystream(KEY_SEED, DEGREE, 3)
    both = np.concatenate([q - second, second])  # x^i a, for i from 0 to N, is a window that slides to the left
    product = np.zeros(DEGREE, np.uint64)
    for power in np.flatnonzero(digits).tolist():
        shifted = both[DEGREE - power : 2 * DEGREE - power]
        product = (product + (shifted if digits[power] == 1 else q - shifted)) % q
    return product


def expand(machine: Seal, seed: bytes) -> Words:
    """The second half that SEAL makes of a seed."""
    summer = Summer(machine)
    summer.add(np.ones(1, np.uint64), [seed])
    second: Words = summer.halves()[1][0]
    return second


def decrypt(machine: Seal, first: Words, second: Words) -> list[int]:
    plain = seal.Plaintext()
    seal.Decryptor(machine.context, secret_key(machine)).decrypt(machine.ciphertext(first, second), plain)
    words: list[int] = machine.plaintext_words(plain).tolist()
    return words


def with_error(messages: list[int], error: Fraction, modulus: int, masks: Words) -> Words:
    """First halves that decrypt with an error as near to ``error`` as integers are, but not beyond it."""
    phases = [Fraction(MODULUS * message, modulus) + error for message in messages]
    whole = [floor(phase) if error > 0 else ceil(phase) for phase in phases]
    return np.array([(phase - m) % MODULUS for phase, m in zip(whole, masks.tolist(), strict=True)], np.uint64)


def messages_of(modulus: int) -> list[int]:
    """N plaintexts: the ends, the middle, and others."""
    edges = [0, 1, 2, modulus // 2, modulus // 2 + 1, modulus - 2, modulus - 1]
    others: list[int] = keystream(bytes(32), DEGREE - len(edges), modulus).tolist()
    return edges + others


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("bits", "clients"), GRIDS)
def test_the_largest_error_that_the_bound_admits_decrypts_exactly(bits: int, clients: int, sign: int) -> None:
    p = Parameters(Grid(bits, clients))
    machine, second = Seal(p), keystream(bytes(range(1, 33)), DEGREE, MODULUS)
    messages, error = messages_of(p.plain_modulus), sign * admitted(p.plain_modulus)
    assert abs(error) > largest_error(p, p.drop_up, p.drop_down)
    assert decrypt(machine, with_error(messages, error, p.plain_modulus, times_key(second)), second) == messages
    machine.close()


@pytest.mark.parametrize("sign", [1, -1])
def test_an_error_beyond_half_a_step_gives_the_neighbour(sign: int) -> None:
    p = Parameters(Grid(16, 10))
    machine, second = Seal(p), keystream(bytes(range(1, 33)), DEGREE, MODULUS)
    messages, error = messages_of(p.plain_modulus), sign * (limit(p.plain_modulus) + 2)
    neighbours = [(message + sign) % p.plain_modulus for message in messages]
    assert decrypt(machine, with_error(messages, error, p.plain_modulus, times_key(second)), second) == neighbours
    machine.close()


class WorstCohort:
    """A full cohort that is as unlucky as the law allows, in each of its ``used`` coefficients.

    Every fresh error is 21, every plaintext one whose scaling is rounded up by nearly a half, the masks that are taken
    from the sum one whose scaling is rounded down by as much, and the bits that stay at home are all zero, the clients'
    and the sum's.

    Attributes:
        plain: The sum of the plaintexts modulo t, without the masks.
        first: The sum of the first halves, without the masks.
        error: The largest error of a coefficient, before the low bits of the sum are left out.
    """

    def __init__(self, p: Parameters, machine: Seal, used: int, tries: int) -> None:
        self._p, self._q, self._t, self._used = p, MODULUS, p.plain_modulus, used
        inverse = pow(self._q, -1, self._t)
        self._choices = [(self._t // 2 + 1 + i) * inverse % self._t for i in range(tries)]
        self._scaled = np.array([-(-self._q * m // self._t) % self._q for m in self._choices], np.uint64)
        masks = [(self._t // 2 - i) * inverse % self._t for i in range(tries)]
        taken, mask = min((scaled, m) for m in masks if (scaled := self._q * m // self._t) % (1 << p.drop_up) == 0)
        self._taken = np.uint64(taken)
        self.plain, self.error = [-mask % self._t] * used, Fraction(self._q * mask, self._t) - taken
        summer = Summer(machine)
        self._sum = np.zeros(used, np.uint64)
        for number in range(p.grid.clients):
            seed = bytes([number]) * SEED_BYTES
            sent = self._send(times_key(expand(machine, seed)), last=number == p.grid.clients - 1)
            self._sum += sent
            summer.add(sent, [seed])
        summer.unmask(np.full(used, mask, np.uint64))
        self.first = summer.halves()[0][0][:used]

    def _send(self, masks: Words, *, last: bool) -> Words:
        """What the aggregator restores of one client's first half, u64[used]."""
        first, worst, middle = np.empty(self._used, np.uint64), Fraction(0), np.uint64(1 << (self._p.drop_up - 1))
        for j in range(self._used):
            fresh = (self._scaled + np.uint64(self._q + FRESH) - masks[j]) % np.uint64(self._q)
            fits = (fresh % np.uint64(1 << self._p.drop_up) == 0) & (fresh < self._q // self._p.grid.clients)
            if last:  # nothing so small wraps around q, so the sum's low bits are those of the last one's choice
                fits &= (self._sum[j] + fresh + middle - self._taken) % np.uint64(1 << self._p.drop_down) == 0
            i = int(np.flatnonzero(fits)[0])
            first[j] = fresh[i]
            self.plain[j] = (self.plain[j] + self._choices[i]) % self._t
            exact = Fraction(self._q * self._choices[i], self._t)
            worst = max(worst, FRESH + ceil(exact) - exact)
        sent = restore(truncate(first, self._p.drop_up), self._p.drop_up)
        assert (sent - first).tolist() == [int(middle)] * self._used
        self.error += worst + int(middle)
        return sent


@pytest.mark.slow
def test_the_worst_full_cohort_reaches_the_bound_and_still_decrypts() -> None:
    p, used = Parameters(Grid(16, 10)), 32
    machine = Seal(p)
    worst = WorstCohort(p, machine, used, tries=1 << 17)
    head = truncate(worst.first, p.drop_down)
    assert (restore(head, p.drop_down) - worst.first).tolist() == [1 << (p.drop_down - 1)] * used
    bound = largest_error(p, p.drop_up, p.drop_down)
    assert bound - 1 < worst.error + (1 << (p.drop_down - 1)) < bound < limit(p.plain_modulus)

    seeds = tuple(bytes([number]) * SEED_BYTES for number in range(p.grid.clients))
    values = (used - p.tags) * p.fields - p.trailing
    total = aggregate((seeds,), clients=10, members=10, values=values, first=head)
    with RoundCipher(p, KEY_SEED) as cipher:
        slots = cipher.decrypt(decode_aggregate(encode_aggregate(total, p), p))
    assert slots.tolist() == worst.plain
    machine.close()


@pytest.mark.parametrize(("bits", "clients"), [(8, 3), (16, 10), (24, 3)])
def test_the_fresh_error_of_seal_stays_within_twenty_one(bits: int, clients: int) -> None:
    p = Parameters(Grid(bits, clients))
    machine = Seal(p)
    messages = messages_of(p.plain_modulus)
    plain = machine.load(seal.Plaintext(), machine.plaintext(np.array(messages, np.uint64)))
    encryptor = seal.Encryptor(machine.context, secret_key(machine))
    first, seed = machine.seeded(encryptor.encrypt_symmetric(plain))
    masks = times_key(expand(machine, seed)).tolist()
    scaled = [floor(Fraction(MODULUS * m, p.plain_modulus) + HALF) for m in messages]
    errors = {
        (f + mask - ideal + MODULUS // 2) % MODULUS - MODULUS // 2
        for f, mask, ideal in zip(first.tolist(), masks, scaled, strict=True)
    }
    assert max(map(abs, errors)) <= FRESH
    assert len(errors) > 10
    machine.close()
