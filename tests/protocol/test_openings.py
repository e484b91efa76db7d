"""``protocol.openings``: which sums may follow which.

`tests/attacks/test_search.py` plays whole schedules; here are the rules that it relies on, one by one. What nodes
remember is in `test_memory.py` as bytes.
"""

import re
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from protocol.errors import CohortRefused, MalformedMessage
from protocol.openings import (
    MOST_SETS,
    Nodes,
    Opening,
    require_openable,
    smallest,
    spoiled_from_bytes,
    spoiled_to_bytes,
    unspoiled,
)
from protocol.sharing import threshold

COLLUDERS = st.integers(0, 3)


def upto(count: int) -> Nodes:
    return frozenset(range(1, count + 1))


def remembered(invited: Iterable[int], *sets: Iterable[int]) -> Opening:
    return Opening(frozenset(invited), frozenset(map(frozenset, sets)))


def openable(memory: Iterable[Opening], invited: Nodes, *sets: Nodes, colluders: int = 1) -> bool:
    try:
        require_openable(memory, invited, sets, colluders)
    except CohortRefused:
        return False
    return True


# --- quorums -----------------------------------------------------------------------------------


@st.composite
def quorums(draw: st.DrawFn, invited: Nodes, colluders: int) -> Nodes:
    """As many of these as it takes."""
    return frozenset(draw(st.permutations(sorted(invited)))[: threshold(len(invited), colluders)])


@given(st.integers(3, 12).map(upto), COLLUDERS, st.data())
def test_two_quorums_of_the_same_invited_share_more_than_the_colluders(
    invited: Nodes, colluders: int, data: st.DataObject
) -> None:
    assume(threshold(len(invited), colluders) <= len(invited))
    one, other = (data.draw(quorums(invited, colluders)) for _ in range(2))
    assert len(one & other) > colluders


@given(st.integers(5, 14).map(upto), st.frozensets(st.integers(1, 14), max_size=3), COLLUDERS, st.data())
def test_where_a_sum_may_follow_its_quorum_is_one_of_the_earlier_invited_too(
    earlier: Nodes, others: Nodes, colluders: int, data: st.DataObject
) -> None:
    invited = earlier ^ others
    now, least = threshold(len(invited), colluders), threshold(len(earlier), colluders)
    allowed = openable([remembered(earlier)], invited, colluders=colluders)
    assert allowed == (now - len(invited - earlier) >= least)
    if allowed and now <= len(invited):
        quorum, before = data.draw(quorums(invited, colluders)), data.draw(quorums(earlier, colluders))
        assert len(quorum & earlier) >= least
        assert len(quorum & before) > colluders


def test_the_same_may_be_invited_again_and_others_only_where_a_quorum_of_the_first_stays() -> None:
    first = remembered(upto(10))
    assert openable([first], upto(10))
    assert openable([first], upto(9))  # six of the nine are six of the ten
    assert openable([first], upto(11))  # of seven of the eleven, six at least are of the ten
    refused = [upto(8), upto(12), upto(10) - {3} | {11}, frozenset(range(11, 21)), upto(3)]
    assert [invited for invited in refused if openable([first], invited)] == []


def test_who_was_invited_first_is_named_with_what_to_do() -> None:
    text = (
        "a sum from the same starting model was begun with other nodes: those that were invited then (nodes 1, 2, 3, "
        "4, 5) have to be invited again, or the run has to begin from another model"
    )
    for sets in ((), (upto(3),)):
        with pytest.raises(CohortRefused, match=f"^{re.escape(text)}$"):
            require_openable([remembered(upto(5))], upto(3), sets, 1)


def test_of_many_nodes_the_first_twelve_are_named_and_the_others_counted() -> None:
    with pytest.raises(CohortRefused, match=r"nodes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 3 more\)"):
        require_openable([remembered(upto(15))], upto(3), (), 1)
    with pytest.raises(CohortRefused, match=r"nodes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12\)"):
        require_openable([remembered(upto(12))], upto(3), (), 1)


def test_one_memory_of_other_nodes_is_enough_to_refuse() -> None:
    memory = [remembered(upto(8)), remembered([*upto(7), 9])]
    assert openable(memory[:1], upto(8))
    assert not openable(memory, upto(8))


# --- families of sets --------------------------------------------------------------------------

ALL = upto(12)
INTERVALS = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(
    lambda ends: frozenset(range(min(ends), max(ends) + 1))
)
"""Sets of neighbours are often nested, and often not."""


@given(st.lists(INTERVALS | st.frozensets(st.integers(1, 12), max_size=12), max_size=5), INTERVALS, COLLUDERS)
@example([upto(12)], upto(12), 1)
@example([upto(12)], upto(9), 1)
@example([upto(12)], upto(10), 1)
@example([frozenset({1, 2, 3}), frozenset({4, 5, 6})], upto(6), 1)
@example([upto(6), frozenset(range(5, 11))], upto(12), 0)
def test_what_may_be_opened_is_nested_or_disjoint_and_tells_no_few_apart(
    opened: list[Nodes], asked: Nodes, colluders: int
) -> None:
    family = {asked, *opened}
    crossing = any(a & b and a - b and b - a for a in family for b in family)
    # Clients that stand in the same sets cannot be told apart by any combination of their sums.
    alike = Counter(columns for node in ALL if any(columns := tuple(node in one for one in family)))
    few = any(count < smallest(colluders) for count in alike.values())
    memory = [remembered(ALL, one) for one in opened]
    assert openable(memory, ALL, asked, colluders=colluders) == (not crossing and not few)
    assert openable([remembered(ALL, *opened)], ALL, asked, colluders=colluders) == (not crossing and not few)


@pytest.mark.parametrize(
    ("opened", "asked"),
    [
        ([], upto(10)),
        ([upto(10)], upto(10)),
        ([upto(10)], upto(7)),
        ([upto(7)], upto(10)),
        ([upto(10), upto(7)], frozenset({8, 9, 10})),
        ([upto(5)], frozenset(range(6, 11))),
        ([upto(10), upto(7)], frozenset({1, 2, 3, 4})),
    ],
)
def test_the_same_set_a_disjoint_one_and_a_nested_one_with_enough_left_out_may_follow(
    opened: list[Nodes], asked: Nodes
) -> None:
    assert openable([remembered(upto(10), *opened)], upto(10), asked)


@pytest.mark.parametrize(
    ("opened", "asked", "named"),
    [
        ([upto(10)], upto(9), upto(10)),  # a difference of one
        ([upto(10)], upto(8), upto(10)),  # of two, of which one may be a colluder
        ([upto(7)], upto(8), upto(7)),
        ([upto(6)], frozenset(range(4, 11)), upto(6)),  # an overlap, however large
        ([upto(10), upto(5)], upto(8), upto(10)),  # 8 leaves two of ten
        ([upto(5), frozenset({6, 7, 8})], upto(10), upto(5)),  # nine and ten alone are in no smaller set
    ],
)
def test_a_set_that_differs_by_few_or_overlaps_is_refused_and_the_opened_one_named(
    opened: list[Nodes], asked: Nodes, named: Nodes
) -> None:
    with pytest.raises(CohortRefused) as refusal:
        require_openable([remembered(upto(10), *opened)], upto(10), (asked,), 1)
    assert str(refusal.value) == (
        "the difference of two sums from the same starting model could expose a member: with a sum of nodes "
        f"{', '.join(map(str, sorted(named)))}, no other may be opened. They have to take part again, all of them, or "
        "the run has to begin from another model"
    )


def test_a_set_that_is_too_small_by_itself_is_refused_and_named() -> None:
    for colluders in range(4):
        few = upto(smallest(colluders) - 1)
        assert openable((), upto(10), upto(smallest(colluders)), colluders=colluders)
        with pytest.raises(CohortRefused, match=f"sum of nodes {', '.join(map(str, sorted(few)))}, no other"):
            require_openable((), upto(10), (few,), colluders)


def test_two_sets_at_once_are_held_against_one_another() -> None:
    assert openable((), upto(10), upto(10), upto(7))
    assert not openable((), upto(10), upto(10), upto(8))


def test_everybodys_memory_counts_together() -> None:
    """No two of the sets differ by few, but the third leaves two clients between them."""
    memory = [remembered(upto(10), upto(4)), remembered(upto(10), frozenset({5, 6, 7, 8}))]
    for known in ([], memory[:1], memory[1:]):
        assert openable(known, upto(10), upto(10))
    assert not openable(memory, upto(10), upto(10))


def test_without_a_set_the_quorum_alone_is_looked_at() -> None:
    clashing = remembered(upto(10), upto(9), upto(10))
    assert openable([clashing], upto(10))
    assert not openable([clashing], upto(10), upto(10))


@pytest.mark.parametrize(("colluders", "least"), [(0, 2), (1, 3), (2, 4), (10, 12)])
def test_the_smallest_sum_hides_two_from_the_colluders(colluders: int, least: int) -> None:
    assert smallest(colluders) == least


# --- which of several sums are none ---------------------------------------------------------------------------


@given(st.integers(0, (1 << MOST_SETS) - 1))
def test_the_bits_of_spoiled_sums_are_read_as_they_were_written(spoiled: int) -> None:
    assert spoiled_from_bytes(spoiled_to_bytes(spoiled)) == spoiled
    good = unspoiled(range(MOST_SETS), spoiled)
    assert sum(1 << place for place in range(MOST_SETS) if place not in good) == spoiled


@pytest.mark.parametrize("size", [0, 7, 9, 1 << 20])
def test_bits_of_another_number_of_sums_are_refused_and_not_shown(size: int) -> None:
    with pytest.raises(MalformedMessage, match=f"^the bits of spoiled sums are 8 bytes long, not {size}$"):
        spoiled_from_bytes(b"\xff" * size)
