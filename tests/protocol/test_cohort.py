"""``protocol.cohort``: which lists of attendances are a cohort, and which cohorts may follow one another.

What is shown of succession, for an aggregator that announces what it likes to whom it likes, with at most ``COLLUDERS``
of the clients on its side. A sum is *completed* when every honest member of its cohort has contributed to it.

* One honest client accepts only cohorts that lie inside one another, and any two of them differ by two honest clients
  or more.
* Two different cohorts that could both follow the same one share an honest client, who accepts the second only if it
  may follow the first: they are completed both only where one lies inside the other and leaves two honest clients out.
* No rational combination of completed sums is the update of a single honest client.
"""

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.cohort import (
    COLLUDERS,
    SMALLEST,
    Cohort,
    decode_cohort,
    gather_cohort,
    require_agreement,
    require_quorum,
    require_successor,
    successor_sizes,
)
from protocol.errors import AgreementError, CohortRefused, MalformedMessage, PeerError, SignatureRefused
from protocol.roster import Roster
from protocol.wire import ATTENDANCE_BYTES, Attendance
from tests.factories import attend, attendance, cohort, kits, mutations, plan

KITS = kits(plan(), (1, 2, 3, 5, 300))
ROSTER = KITS[1].roster
WHOLE = cohort(KITS)
MEMBERS = [attendance(KITS[1], node=node) for node in range(41)]
DISAGREEMENTS = {
    "run": bytes(16),
    "round": 2,
    "attempt": 2,
    "plan": bytes(32),
    "key": bytes(16),
    "model": bytes(32),
    "support": bytes(32),
    "values": 8,
    "votes": 7,
}


def unsigned(nodes: Iterable[int]) -> Cohort:
    """A cohort of these nodes that nobody has signed."""
    return Cohort(tuple(MEMBERS[node] for node in sorted(nodes)), ())


# --- a list of attendances ---------------------------------------------------------------------


@given(st.permutations(list(KITS)), st.integers(1, len(KITS)))
def test_the_order_in_which_attendances_come_in_is_no_matter(nodes: list[int], size: int) -> None:
    members = nodes[:size]
    gathered = gather_cohort([attend(KITS[node]) for node in members], ROSTER)
    assert [member.node for member in gathered.members] == sorted(members)
    assert gathered.nodes == frozenset(members)
    assert gathered.bearer == min(members)
    assert gathered.samples == sum(100 + node % 100 for node in members)
    assert decode_cohort(gathered.encode(), ROSTER) == gathered
    assert len(gathered.encode()) == size * ATTENDANCE_BYTES


def test_an_announced_cohort_stands_in_ascending_order() -> None:
    turned = b"".join(reversed(WHOLE.encoded))
    assert gather_cohort(WHOLE.encoded[::-1], ROSTER) == WHOLE
    with pytest.raises(MalformedMessage, match="ascending order"):
        decode_cohort(turned, ROSTER)


@pytest.mark.parametrize("change", [-1, 1, 100])
def test_an_announced_cohort_is_a_whole_number_of_attendances(change: int) -> None:
    data = WHOLE.encode() + bytes(change) if change > 0 else WHOLE.encode()[:change]
    with pytest.raises(MalformedMessage, match="not a whole number of attendances"):
        decode_cohort(data, ROSTER)


def test_more_attendances_than_nodes_are_refused_before_any_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object) -> None:
        raise AssertionError("it is verified")

    monkeypatch.setattr(Roster, "verify", verify)
    with pytest.raises(CohortRefused, match="larger than the roster"):
        decode_cohort(WHOLE.encode()[:ATTENDANCE_BYTES] * (len(ROSTER.nodes) + 1), ROSTER)


def test_nobody_is_no_cohort() -> None:
    with pytest.raises(CohortRefused, match="needs members"):
        decode_cohort(b"", ROSTER)


def test_a_member_stands_in_a_cohort_once_even_with_two_attendances() -> None:
    for second in (attend(KITS[2]), attend(KITS[2], nonce=bytes(16))):
        with pytest.raises(CohortRefused, match="each of them once"):
            gather_cohort([attend(KITS[1]), attend(KITS[2]), second], ROSTER)


@pytest.mark.parametrize("field", DISAGREEMENTS)
def test_a_disagreement_names_the_field_and_both_nodes(field: str) -> None:
    changes = {field: DISAGREEMENTS[field]}
    if field == "values":
        changes["votes"] = 0
    odd = attend(KITS[3], **changes)
    with pytest.raises(AgreementError, match=f"nodes 1 and 3 report different values of the {field}") as error:
        gather_cohort([odd, attend(KITS[2]), attend(KITS[1])], ROSTER)
    assert (error.value.field, error.value.nodes) == (field, (1, 3))


def test_members_may_differ_in_number_samples_and_nonce_alone() -> None:
    one = attendance(KITS[1])
    require_agreement(one, attendance(KITS[300]))
    assert set(DISAGREEMENTS) == set(Attendance.__dataclass_fields__) - {"node", "samples", "nonce"}


def test_one_bad_signature_spoils_the_cohort() -> None:
    forged = bytearray(WHOLE.encode())
    forged[ATTENDANCE_BYTES + 36] ^= 1  # the samples of the second member
    with pytest.raises(SignatureRefused) as refusal:
        decode_cohort(bytes(forged), ROSTER)
    assert refusal.value.node == 2


FRAMES = [WHOLE.encode(), b"".join(WHOLE.encoded[1:4]), b"".join(WHOLE.encoded[::2])]


@pytest.mark.slow
@given(
    mutations(FRAMES, fields=range(8, 5 * ATTENDANCE_BYTES)) | st.lists(st.sampled_from(WHOLE.encoded)).map(b"".join)
)
@settings(max_examples=1200, deadline=None)
def test_a_mutated_cohort_is_refused_or_made_of_genuine_attendances(data: bytes) -> None:
    try:
        made = decode_cohort(data, ROSTER)
    except PeerError:
        return
    assert made.encode() == data
    assert set(made.encoded) <= set(WHOLE.encoded)


def test_every_truncation_of_a_cohort_is_refused_but_for_whole_members() -> None:
    data = WHOLE.encode()
    whole = []
    for length in range(len(data)):
        try:
            whole.append(len(decode_cohort(data[:length], ROSTER).members))
        except PeerError:
            continue
    assert whole == [1, 2, 3, 4]


def test_the_digest_names_the_members_their_attendances_and_the_attempt() -> None:
    others = [
        WHOLE.digest(2),
        WHOLE.digest((1 << 32) - 1),
        gather_cohort(WHOLE.encoded[1:], ROSTER).digest(1),
        gather_cohort([*WHOLE.encoded[1:], attend(KITS[1], nonce=bytes(16))], ROSTER).digest(1),
        gather_cohort([*WHOLE.encoded[1:], attend(KITS[1], samples=7)], ROSTER).digest(1),
    ]
    assert len({WHOLE.digest(1), *others}) == 6
    assert {len(digest) for digest in others} == {32}
    assert decode_cohort(WHOLE.encode(), ROSTER).digest(1) == WHOLE.digest(1)


@pytest.mark.parametrize(("minimum", "largest"), [(0, 5), (3, 5), (4, 4), (5, 5)])
@pytest.mark.parametrize("size", range(1, 8))
def test_a_cohort_is_neither_too_small_nor_too_large(size: int, minimum: int, largest: int) -> None:
    made = unsigned(range(size))
    if max(minimum, 3) <= size <= largest:
        require_quorum(made, minimum, largest)
        assert len(made.nodes) == size
    else:
        with pytest.raises(
            CohortRefused, match=f"cohort of {size} was announced; the plan allows {max(minimum, 3)} to"
        ):
            require_quorum(made, minimum, largest)


# --- succession --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "minimum", "sizes"),
    [
        (3, 3, 3, []),
        (7, 7, 3, []),
        (8, 8, 3, [5]),
        (9, 9, 3, [6]),
        (10, 10, 3, [6, 7]),
        (10, 10, 7, [7]),
        (10, 10, 8, []),
        (10, 7, 3, []),
        (12, 12, 3, [7, 8, 9]),
        (12, 12, 8, [8, 9]),
        (13, 13, 3, [8, 9, 10]),
        (20, 20, 3, [11, 12, 13, 14, 15, 16, 17]),
        (20, 17, 3, [11, 12, 13, 14]),
        (20, 14, 3, [11]),
        (20, 13, 3, []),
    ],
)
def test_the_sizes_that_may_follow(first: int, last: int, minimum: int, sizes: list[int]) -> None:
    assert list(successor_sizes(first, last, minimum)) == sizes


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 20))
def test_every_safe_size_keeps_an_honest_half_of_the_first_and_leaves_two_of_the_last(
    first: int, last: int, minimum: int
) -> None:
    for size in successor_sizes(first, last, minimum):
        assert 2 * size - first - COLLUDERS >= 1
        assert last - size - COLLUDERS >= 2
        assert size >= max(minimum, SMALLEST)


@given(st.integers(3, 200), st.integers(3, 200))
def test_no_size_is_refused_without_a_reason(first: int, size: int) -> None:
    if size not in successor_sizes(first, first, SMALLEST):
        assert 2 * size - first - COLLUDERS < 1 or first - size - COLLUDERS < 2 or size < SMALLEST


@given(
    st.sets(st.integers(0, 30), max_size=24),
    st.sets(st.integers(0, 30), max_size=24),
    st.sets(st.integers(0, 30), max_size=24),
    st.integers(3, 9),
)
@example(set(range(10)), set(range(10)), set(range(7)), 3)
@example(set(range(10)), set(range(10)), set(range(4, 11)), 3)
@example(set(range(20)), set(range(17)), set(range(12)), 3)
@example(set(range(20)), set(range(17)), set(range(10)), 3)
def test_exactly_a_subset_of_a_safe_size_may_follow(
    first: set[int], last: set[int], following: set[int], minimum: int
) -> None:
    chain = [frozenset(first), frozenset(last)]
    if following == last:
        require_successor(chain, frozenset(following), minimum)
    elif following <= last and len(following) in successor_sizes(len(first), len(last), minimum):
        require_successor(chain, frozenset(following), minimum)
        assert len(last - following) > len(following - last)
    else:
        with pytest.raises(CohortRefused, match="Those who were lost must come back"):
            require_successor(chain, frozenset(following), minimum)


class Honest:
    """What an honest client remembers of a round, and when it contributes."""

    def __init__(self, node: int, minimum: int) -> None:
        self.node, self._minimum = node, minimum
        self.accepted: list[tuple[int, frozenset[int]]] = []

    def contributes(self, attempt: int, announced: frozenset[int]) -> bool:
        """Whether it answers; as in `edge_client/round.py`, `admit_cohort`."""
        try:
            require_quorum(unsigned(announced), self._minimum, 1000)
            if self.accepted:
                require_successor([cohort for _, cohort in self.accepted], announced, self._minimum)
        except CohortRefused:
            return False
        if self.node not in announced or (self.accepted and attempt <= self.accepted[-1][0]):
            return False
        self.accepted.append((attempt, announced))
        return True


Announcements = list[tuple[frozenset[int], list[int]]]
"""Cohorts in the order of their attempts, each with the members that are told of it."""


def play(
    announcements: Announcements, colluders: set[int], minimum: int = 3
) -> tuple[list[Honest], set[frozenset[int]]]:
    """Announce cohorts; the honest clients afterwards, and the cohorts whose sums were completed."""
    everybody = set().union(*(announced for announced, _ in announcements))
    honest = {node: Honest(node, minimum) for node in everybody - colluders}
    completed = set()
    for attempt, (announced, told) in enumerate(announcements, start=1):
        answers = [honest[node].contributes(attempt, announced) for node in told if node in honest]
        if all(answers) and set(told) >= announced - colluders:
            completed.add(announced)
    return list(honest.values()), completed


def isolates_a_client(completed: Iterable[frozenset[int]], colluders: set[int]) -> bool:
    """Whether some rational combination of these sums and the colluders' updates is the update of one honest client."""
    sums = [members - colluders for members in completed]
    # Clients that stand in the same sums cannot be told apart: one column for all of them.
    columns = Counter(tuple(int(node in members) for members in sums) for node in frozenset().union(*sums))
    rows = [list(row) for row in zip(*columns, strict=True)]
    ones = [[int(other == column) for other in columns] for column, clients in columns.items() if clients == 1]
    return any(rank_of([*rows, one]) == rank_of(rows) for one in ones)


def rank_of(matrix: list[list[int]]) -> int:
    """The rank of a matrix, by Gauss."""
    rows, rank = [[Fraction(x) for x in row] for row in matrix], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for row in rows[rank + 1 :]:
            factor = row[column] / rows[rank][column]
            row[:] = [a - factor * b for a, b in zip(row, rows[rank], strict=True)]
        rank += 1
    return rank


@st.composite
def attacks(draw: st.DrawFn, largest: int) -> tuple[Announcements, set[int]]:
    """Announcements that branch off one another, mostly of a size that may follow, to all members or to some."""
    nodes = list(range(draw(st.integers(SMALLEST, largest))))
    announced = [frozenset(nodes)]
    if draw(st.booleans()):
        announced = [frozenset(draw(st.permutations(nodes))[: draw(st.integers(SMALLEST, len(nodes)))])]
    for _ in range(draw(st.integers(0, 6))):
        last = draw(st.sampled_from([announced[-1], *announced, frozenset(nodes)]))
        sizes = [*successor_sizes(len(announced[0]), len(last), SMALLEST)] or [len(last)]
        size = draw(st.sampled_from(sizes) | st.integers(1, len(last)))
        announced.append(frozenset(draw(st.permutations(sorted(last)))[:size]))
    told = [
        sorted(members) if draw(st.booleans()) else draw(st.lists(st.sampled_from(sorted(members)), unique=True))
        for members in announced
    ]
    return list(zip(announced, told, strict=True)), set(draw(st.lists(st.sampled_from(nodes), max_size=COLLUDERS)))


@pytest.mark.slow
@given(attacks(24))
@settings(max_examples=300, deadline=None)
def test_the_cohorts_of_one_honest_client_are_nested_and_two_honest_clients_apart(
    case: tuple[Announcements, set[int]],
) -> None:
    announcements, colluders = case
    for client in play(announcements, colluders)[0]:
        for i, (_, earlier) in enumerate(client.accepted):
            assert client.node in earlier
            assert len(earlier - colluders) >= 2
            for _, later in client.accepted[i + 1 :]:
                assert later <= earlier
                assert later == earlier or len(earlier - later - colluders) >= 2


@given(
    st.sampled_from([last for last in range(41) if successor_sizes(last, last, SMALLEST)]),
    st.sets(st.integers(0, 39), max_size=COLLUDERS),
    st.booleans(),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_two_cohorts_that_could_follow_are_both_completed_only_if_one_may_follow_the_other(
    last: int, colluders: set[int], apart: bool, data: st.DataObject
) -> None:
    first, sizes = frozenset(range(last)), successor_sizes(last, last, SMALLEST)
    successors = st.permutations(sorted(first)).flatmap(
        lambda order: st.sampled_from(sizes).map(lambda size: frozenset(order[:size]))
    )
    one = data.draw(successors)
    rest = sorted(first - one)
    other = frozenset([*rest, *sorted(one)[: sizes[0] - len(rest)]]) if apart else data.draw(successors)
    assert (one & other) - colluders
    _, completed = play([(members, sorted(members)) for members in (first, one, other)], colluders)
    assert {first, one} <= completed
    follows = other < one and len(other) in successor_sizes(len(first), len(one), SMALLEST)
    assert (other in completed) == (other == one or follows)
    assert not isolates_a_client(completed, colluders)


@pytest.mark.slow
@given(attacks(10) | attacks(24))
@settings(max_examples=400, deadline=None)
@example(([(frozenset(range(10)), list(range(10))), (frozenset(range(7)), list(range(7)))], {0}))
@example(([(frozenset(range(5)), list(range(5))), (frozenset(range(5, 10)), list(range(5, 10)))], {0}))
def test_no_combination_of_completed_sums_is_one_honest_clients_update(
    case: tuple[Announcements, set[int]],
) -> None:
    announcements, colluders = case
    assert not isolates_a_client(play(announcements, colluders)[1], colluders)


def branches(size: int, between: int, end: int) -> Announcements:
    """Two branches through cohorts of ``between`` that only a part hears of, to ``end`` members each."""
    everybody = range(size)
    one, other = everybody[:end], everybody[end : 2 * end]
    return [
        (frozenset(everybody), list(everybody)),
        (frozenset(everybody[:between]), list(one)),
        (frozenset([*other, *[node for node in everybody if node not in other][: between - end]]), list(other)),
        (frozenset(one), list(one)),
        (frozenset(other), list(other)),
    ]


@pytest.mark.parametrize("size", range(8, 41))
def test_branches_that_nobody_else_hears_of_do_not_part(size: int) -> None:
    # Each step of these branches alone is safe: more than half stay, and three or more are left out.
    tried = 0
    for between in range(-(-(size + 2) // 2), size - 2):
        for end in range(-(-(between + 2) // 2), min(between - 2, size // 2 + 1)):
            completed = play(branches(size, between, end), set())[1]
            assert frozenset(range(size)) in completed
            assert not isolates_a_client(completed, set())
            tried += 1
    assert tried or size < 11


def test_sums_that_would_expose_a_client_are_recognised() -> None:
    a, b, c = frozenset({1, 2, 3, 4, 5}), frozenset({1, 2}), frozenset({3, 4})
    for exposing in ([a, b, c], [a, frozenset({1, 2, 3, 4})], [b, frozenset({2, 3}), frozenset({1, 3})]):
        assert isolates_a_client(exposing, set())
    for safe in ([a, b], [b, c], []):
        assert not isolates_a_client(safe, set())
    assert isolates_a_client([a, b], {3, 4})
    assert isolates_a_client([b], {1})
