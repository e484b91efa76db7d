"""``protocol.cohort``: how a cohort is divided into groups, each of which is added up by itself."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.cohort import decode_cohort, gather_cohort, require_groups
from protocol.errors import CohortRefused, MalformedMessage
from protocol.openings import MOST_SETS, Nodes, encode_sets
from tests.factories import attend, cohort, kits, plan

KITS = kits(plan(), (1, 2, 3, 5, 300))
ROSTER = KITS[1].roster
WHOLE = cohort(KITS)
DIVIDED = cohort(KITS, (Nodes({1, 3, 300}), Nodes({2, 5})))


@st.composite
def divisions(draw: st.DrawFn) -> tuple[list[int], list[Nodes]]:
    """Some of the nodes, and two or more groups of them, in any order."""
    nodes = draw(st.permutations(list(KITS)))[: draw(st.integers(2, len(KITS)))]
    ends = sorted(draw(st.sets(st.integers(1, len(nodes) - 1), min_size=1)))
    return nodes, [Nodes(nodes[start:end]) for start, end in pairwise([0, *ends, len(nodes)])]


@given(divisions())
def test_a_divided_cohort_has_its_groups_in_the_order_of_their_smallest_numbers(
    case: tuple[list[int], list[Nodes]],
) -> None:
    nodes, groups = case
    made = gather_cohort([attend(KITS[node]) for node in nodes], ROSTER, groups)
    assert made.parts == made.groups == tuple(sorted(groups, key=min))
    assert all(node in made.parts[made.part_of(node)] for node in nodes)
    assert decode_cohort(made.encode(), ROSTER) == made
    assert made.encode() == encode_sets(made.groups) + b"".join(made.encoded)


@pytest.mark.parametrize(
    "groups",
    [
        (Nodes({1, 2, 3, 5, 300}),),
        (Nodes(), Nodes({1, 2, 3, 5, 300})),
        (Nodes({1, 2}), Nodes(), Nodes({3, 5, 300})),
        (Nodes({1, 2, 3}), Nodes({3, 5, 300})),
        (Nodes({1, 2, 3, 5, 300}), Nodes({1, 2, 3, 5, 300})),
        (Nodes({1, 2}), Nodes({5, 300})),
        (Nodes({1, 2}), Nodes({3, 4, 5, 300})),
    ],
)
def test_of_two_groups_or_more_each_member_is_in_exactly_one(groups: tuple[Nodes, ...]) -> None:
    with pytest.raises(CohortRefused, match="two or more, and each member is in one of them"):
        gather_cohort(WHOLE.encoded, ROSTER, groups)
    with pytest.raises(CohortRefused, match="two or more, and each member is in one of them"):
        decode_cohort(encode_sets(groups) + b"".join(WHOLE.encoded), ROSTER)


def test_groups_stand_in_one_order() -> None:
    with pytest.raises(MalformedMessage, match="members and groups of a cohort must stand in ascending order"):
        decode_cohort(encode_sets(DIVIDED.groups[::-1]) + b"".join(DIVIDED.encoded), ROSTER)
    assert gather_cohort(DIVIDED.encoded, ROSTER, DIVIDED.groups[::-1]) == DIVIDED


def test_a_cohort_has_no_more_groups_than_an_attendance_has_bits_for() -> None:
    groups = [Nodes({node}) for node in range(MOST_SETS + 1)]
    with pytest.raises(MalformedMessage, match=f"{MOST_SETS + 1} sets of nodes are more than {MOST_SETS}"):
        decode_cohort(encode_sets(groups) + b"".join(WHOLE.encoded), ROSTER)


@pytest.mark.parametrize(
    ("changes", "least"), [({}, 3), ({"colluders": 0, "min_cohort": 2}, 2), ({"min_cohort": 5}, 5)]
)
def test_no_group_is_smaller_than_the_smallest_cohort(changes: dict[str, int], least: int) -> None:
    agreed = plan(max_cohort=9, **changes)
    enough, few = Nodes(range(least)), Nodes(range(least - 1))
    require_groups((enough, enough | {300}), agreed)
    for parts in ((few,), (enough, few), (few, enough)):
        text = f"a sum of {least - 1} was announced; the plan allows none of fewer than {least}"
        with pytest.raises(CohortRefused, match=f"^{text}$"):
            require_groups(parts, agreed)
