"""``protocol.sharing``: so many shares give a secret back, whichever they are, and one less says nothing about it."""

from fractions import Fraction
from itertools import combinations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import MalformedMessage
from protocol.sharing import COMMITMENT_BYTES, SECRET_BYTES, commit, dealt_digest, draw_secret, join, split, threshold

PRIME = (1 << 255) - 19
NUMBERS = st.integers(0, PRIME - 1) | st.sampled_from([0, 1, PRIME - 1])
NODES = st.integers(0, (1 << 32) - 1) | st.sampled_from([0, 1, (1 << 32) - 1])


def secret_of(number: int) -> bytes:
    return number.to_bytes(SECRET_BYTES, "little")


def naive(points: dict[int, bytes], place: int) -> int:
    """The value at ``place`` of the polynomial through these shares: Lagrange over the rationals, then modulo p."""
    xs, total = [node + 1 for node in points], Fraction(0)
    for x, share in zip(xs, points.values(), strict=True):
        term = Fraction(int.from_bytes(share, "little"))
        for other in xs:
            if other != x:
                term *= Fraction(place - other, x - other)
        total += term
    return total.numerator * pow(total.denominator, -1, PRIME) % PRIME


@st.composite
def dealings(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """A secret, a threshold, and at least so many nodes."""
    nodes = draw(st.lists(NODES, min_size=1, max_size=12, unique=True))
    return draw(NUMBERS), draw(st.integers(1, len(nodes))), nodes


# --- split and join ----------------------------------------------------------------------------


@given(dealings(), st.data())
def test_any_threshold_of_the_shares_or_more_give_the_secret_back(
    case: tuple[int, int, list[int]], data: st.DataObject
) -> None:
    number, least, nodes = case
    shares = split(secret_of(number), least, nodes)
    assert list(shares) == nodes
    for size in range(least, len(nodes) + 1):
        chosen = data.draw(st.permutations(nodes))[:size]
        assert join({node: shares[node] for node in chosen}) == secret_of(number)


@given(dealings(), NUMBERS)
def test_one_share_less_than_the_threshold_fits_every_secret(case: tuple[int, int, list[int]], other: int) -> None:
    """Whatever the secret is said to be, there is a share of one more node that makes it so."""
    number, least, nodes = case
    shares = split(secret_of(number), least, nodes)
    few, one_more = {node: shares[node] for node in nodes[: least - 1]}, 1 << 32
    fitting = naive({-1: secret_of(other), **few}, one_more + 1)  # the secret is the share at zero
    assert join({one_more: secret_of(fitting), **few}) == secret_of(other)


@pytest.mark.parametrize("least", range(2, 7))
def test_fewer_shares_than_the_threshold_do_not_give_the_secret_back(least: int) -> None:
    nodes = [0, 1, 2, 3, 300, 70_000, (1 << 32) - 1]
    secret = draw_secret()
    shares = split(secret, least, nodes)
    for size in range(1, least):
        for chosen in combinations(nodes, size):
            assert join({node: shares[node] for node in chosen}) != secret


def test_a_secret_is_shared_anew_each_time() -> None:
    secret, nodes = draw_secret(), [1, 2, 3]
    one, other = split(secret, 2, nodes), split(secret, 2, nodes)
    assert not {*one.values()} & {*other.values()}
    assert join({1: one[1], 2: other[2]}) != secret


def test_where_one_share_is_enough_each_is_the_secret() -> None:
    secret = draw_secret()
    assert split(secret, 1, [7, 9]) == {7: secret, 9: secret}


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.lists(NODES, min_size=5, max_size=7, unique=True))
def test_a_share_is_the_value_of_the_polynomial_at_the_nodes_number_plus_one(
    polynomial: list[int], nodes: list[int]
) -> None:
    drawn = iter(polynomial[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("protocol.sharing.secrets.randbelow", lambda below: next(drawn) if below == PRIME else None)
        shares = split(secret_of(polynomial[0]), len(polynomial), nodes)
    for node, share in shares.items():
        value = sum(coefficient * (node + 1) ** power for power, coefficient in enumerate(polynomial))
        assert share == secret_of(value % PRIME)


@given(st.dictionaries(NODES, NUMBERS.map(secret_of), min_size=1, max_size=6))
def test_join_is_lagranges_value_at_zero_for_shares_of_anybody(shares: dict[int, bytes]) -> None:
    assert join(shares) == secret_of(naive(shares, 0))


@given(dealings(), st.data())
def test_shares_of_two_secrets_add_up_to_those_of_their_sum(
    case: tuple[int, int, list[int]], data: st.DataObject
) -> None:
    number, least, nodes = case
    other = data.draw(NUMBERS)
    one, two = split(secret_of(number), least, nodes), split(secret_of(other), least, nodes)
    added = {
        node: secret_of((int.from_bytes(one[node], "little") + int.from_bytes(two[node], "little")) % PRIME)
        for node in nodes
    }
    assert join(added) == secret_of((number + other) % PRIME)


def test_one_share_that_was_changed_changes_the_secret() -> None:
    secret, nodes = draw_secret(), [1, 2, 3, 4]
    shares = split(secret, 3, nodes)
    for node in nodes:
        changed = bytes([shares[node][0] ^ 1]) + shares[node][1:]
        assert join({**shares, node: changed}) != secret


@pytest.mark.parametrize(
    "bad", [b"", bytes(31), bytes(33), secret_of(PRIME), secret_of(PRIME + 1), b"\xff" * 32, bytes(31) + b"\x80"]
)
def test_what_is_no_number_below_the_prime_in_32_bytes_is_neither_shared_nor_joined(bad: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"not 32 bytes of a number below 2\^255 - 19"):
        split(bad, 2, [1, 2])
    with pytest.raises(MalformedMessage, match=r"not 32 bytes of a number below 2\^255 - 19"):
        join({1: secret_of(PRIME - 1), 2: bad})


def test_a_drawn_secret_is_below_the_prime_and_a_private_key(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [draw_secret() for _ in range(20)]
    assert len(set(drawn)) == 20
    assert all(len(secret) == SECRET_BYTES and int.from_bytes(secret, "little") < PRIME for secret in drawn)
    publics = {X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() for secret in drawn}
    assert len(publics) == 20
    monkeypatch.setattr("protocol.sharing.secrets.randbelow", lambda below: below - 1)
    assert draw_secret() == secret_of(PRIME - 1)


# --- how many it takes -------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(0, 50))
@example(3, 1)
@example(4, 1)
def test_two_sets_of_a_threshold_share_more_than_the_colluders_and_no_smaller_number_does(
    invited: int, colluders: int
) -> None:
    least = threshold(invited, colluders)
    assert 2 * least - invited > colluders
    assert 2 * (least - 1) - invited <= colluders


@pytest.mark.parametrize(
    ("invited", "colluders", "least"),
    [(3, 0, 2), (3, 1, 3), (4, 1, 3), (5, 1, 4), (6, 1, 4), (10, 1, 6), (10, 2, 7), (100, 1, 51), (200, 20, 111)],
)
def test_how_many_of_the_invited_open_a_sum(invited: int, colluders: int, least: int) -> None:
    assert threshold(invited, colluders) == least


# --- what names a secret -----------------------------------------------------------------------


def test_commitments_are_of_the_size_that_is_asked_for_and_tell_secrets_and_shares_apart() -> None:
    one, other = draw_secret(), draw_secret()
    assert len(commit(one)) == 32
    assert len(commit(one, COMMITMENT_BYTES)) == 16
    assert commit(one, COMMITMENT_BYTES) != commit(one)[:COMMITMENT_BYTES]
    assert len({commit(one), commit(other), dealt_digest(one), dealt_digest(other)}) == 4
    assert commit(one) == commit(bytes(one))


@given(st.binary(max_size=200), st.integers(0, 199))
def test_a_changed_byte_of_what_was_dealt_changes_its_digest(dealt: bytes, at: int) -> None:
    assert len(dealt_digest(dealt)) == 32
    assert dealt_digest(dealt) != dealt_digest(dealt + b"\0")
    if at < len(dealt):
        assert dealt_digest(dealt) != dealt_digest(dealt[:at] + bytes([dealt[at] ^ 1]) + dealt[at + 1 :])
