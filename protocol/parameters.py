"""The BFV parameters of a plan, and the proof that a full cohort's sum decrypts.

BFV (Fan and Vercauteren, ePrint 2012/144) with coefficient packing: N = 4096, one 60-bit prime q, plaintext modulus
t = R^f, seeded symmetric ciphertexts. The low ``drop_up`` bits of each first half stay at home and are replaced by
their midpoint; the low ``drop_down`` bits of the summed first half likewise. Law, the *hard* noise bound::

    K * (21 + 1/2 + 2^(drop_up - 1)) + 1/2 + 2^(drop_down - 1)  <  q / (2 t)

21 bounds SEAL's fresh error (a centred binomial), 1/2 its rounding of q m / t, once for each client and once where the
aggregator takes the masks from the sum. Within the bound decryption cannot fail,
which exact schemes need for more than convenience: attacks on them start from decryption failures (ePrint
2024/116). A plan for which no f and no drop satisfy the bound is refused when it is built.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

from protocol.errors import HeadroomError
from protocol.figures import places
from protocol.grid import Grid
from protocol.lanes import Lanes, value_lanes, vote_lanes

DEGREE: Final = 4096
"""N, the ring degree: coefficients in one ciphertext."""

MODULUS: Final = 1152921504606830593
"""q: the 60-bit prime that SEAL's ``CoeffModulus.Create(4096, [60])`` gives."""

COEFFICIENT_BITS: Final = 60
SECURITY_BITS: Final = 128
"""Classical security by the Homomorphic Encryption Standard's table, enforced by SEAL when a context is built."""

SEED_BYTES: Final = 64
"""The seed of a ciphertext's second half (SEAL's blake2xb generator)."""

_FRESH_ERROR: Final = 21
_UNMASKING: Final = Fraction(1, 2)
_PLAIN_LIMIT: Final = 1 << 59
_TAG_WORD_BITS: Final = 32
_MOST_CLIENTS: Final = 1 << 27  # no bound holds for more, and a larger prime need not be looked for


@dataclass(frozen=True)
class Parameters:
    """The parameters for sums of at most ``grid.clients`` updates on ``grid``.

    Raises:
        HeadroomError: No packing of this grid decrypts for certain.
    """

    grid: Grid

    def __post_init__(self) -> None:
        if self.grid.clients > _MOST_CLIENTS or self._bound(1) <= 0:
            raise HeadroomError(
                f"sums of {self.grid.clients} clients at {self.grid.bits} bits cannot be decrypted for certain with "
                f"N = {DEGREE} and a {COEFFICIENT_BITS}-bit modulus: use fewer bits or smaller cohorts"
            )

    @cached_property
    def _packing(self) -> tuple[int, int]:
        """(lanes in a slot, bits dropped) with the fewest bits per value."""
        choices = [
            (Fraction(COEFFICIENT_BITS - drop, fields), fields, drop)
            for fields in range(1, 9)
            if self.grid.radix**fields < _PLAIN_LIMIT and self._bound(fields) > 0
            for drop in range(COEFFICIENT_BITS)
            if self._slack(fields, drop) > 0
        ]
        _, fields, drop = min(choices)
        return fields, drop

    def _bound(self, fields: int) -> Fraction:
        """What is left of q / 2t after the fresh errors of a full cohort."""
        return self._slack(fields, 0)

    def _slack(self, fields: int, drop: int) -> Fraction:
        """What is left of q / 2t after fresh errors and ``drop`` bits; a thousandth is kept for SEAL's own rounding."""
        room = Fraction(MODULUS, 2 * self.grid.radix**fields) * Fraction(999, 1000) - 1
        midpoint = Fraction(1 << drop, 2) if drop else 0
        return room - _UNMASKING - self.grid.clients * (_FRESH_ERROR + Fraction(1, 2) + midpoint)

    @property
    def fields(self) -> int:
        """f: values that share one coefficient."""
        return self._packing[0]

    @property
    def drop_up(self) -> int:
        """Low bits of a client's first half that do not travel."""
        return self._packing[1]

    @cached_property
    def drop_down(self) -> int:
        """Low bits of the summed first half that do not travel."""
        slack = self._slack(self.fields, self.drop_up)
        drop = 0
        while drop < COEFFICIENT_BITS - 1 and Fraction(1 << drop) < slack:
            drop += 1
        return drop

    @property
    def width_up(self) -> int:
        """Bits of one coefficient in a contribution."""
        return COEFFICIENT_BITS - self.drop_up

    @property
    def width_down(self) -> int:
        """Bits of one coefficient in an aggregate."""
        return COEFFICIENT_BITS - self.drop_down

    @property
    def plain_modulus(self) -> int:
        """The plaintext modulus, t = R^f."""
        return int(self.grid.radix**self.fields)

    @cached_property
    def values(self) -> Lanes:
        """The lanes of quantised values."""
        return value_lanes(self.grid, self.fields)

    @cached_property
    def votes(self) -> Lanes:
        """The lanes of votes."""
        return vote_lanes(self.grid.clients, self.plain_modulus)

    @cached_property
    def trailing(self) -> int:
        """Lanes behind the values: the constant 1, which counts the clients in a sum, and the digits of the figures."""
        return 1 + places(self.grid)

    @property
    def tag_bits(self) -> int:
        """Bits of one factor of a tag, so that each is another number modulo t."""
        return min(_TAG_WORD_BITS, self.plain_modulus.bit_length() - 1)

    @property
    def tags(self) -> int:
        """Slots of a tag: so many that nothing else passes for it but with probability 2^-128."""
        return -(-SECURITY_BITS // self.tag_bits)

    def slots(self, values: int, votes: int) -> int:
        """Coefficients that a payload of this many values and votes uses, with count, figures and tag."""
        return self.values.slots(values + self.trailing) + self.votes.slots(votes) + self.tags

    def blocks(self, values: int, votes: int) -> int:
        """Ciphertexts that hold them."""
        return -(-self.slots(values, votes) // DEGREE)
