"""``aggregator.admission``: which members remember what forbids a sum, so that the others would refuse it."""

from collections.abc import Collection, Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.admission import forbidding
from protocol.cohort import Cohort
from protocol.errors import CohortRefused
from protocol.openings import Memory, Opening, require_openable
from tests import factories

PLAN = factories.plan()
NODES = (1, 2, 3, 4, 5, 6, 7, 8)
KITS = factories.kits(PLAN, NODES)
ALL = frozenset(NODES)


def remembering(*sets: Iterable[int]) -> Memory:
    """The memory of an attempt of all, in which these sums were opened; none of an attempt where there are none."""
    return frozenset({Opening(ALL, frozenset(map(frozenset, sets)))} if sets else ())


def cohort(memories: Mapping[int, Memory]) -> Cohort:
    """The cohort of all nodes, of whom some remember something."""
    members = [factories.attendance(kit, memory=memories.get(node, frozenset())) for node, kit in KITS.items()]
    return Cohort(tuple(members), tuple(bytes([member.node]) for member in members))


def refused(memories: Mapping[int, Memory], nodes: Collection[int] = NODES) -> set[int]:
    return set(forbidding(cohort(memories), [frozenset(nodes)], ALL, colluders=1))


def test_nobody_is_refused_where_nobody_remembers_anything_or_the_same_sum() -> None:
    assert refused({}) == set()
    assert refused(dict.fromkeys(NODES, remembering(NODES))) == set()
    assert refused(dict.fromkeys(NODES[:5], remembering(NODES[:5]))) == set()


def test_whoever_remembers_what_the_sum_must_not_follow_is_refused_and_told_why() -> None:
    found = forbidding(cohort({3: remembering([3, 4]), 7: remembering(NODES[:5])}), [ALL], ALL, colluders=1)
    assert set(found) == {3}
    assert "with a sum of nodes 3, 4, no other may be opened" in str(found[3])


@pytest.mark.parametrize("liar", NODES)
def test_of_memories_that_only_together_forbid_a_sum_the_rarer_is_not_believed(liar: int) -> None:
    """Either is inside the sum of all, but the two cross."""
    honest = [node for node in NODES if node != liar][:2]
    memories = dict.fromkeys(honest, remembering([1, 2, 3, 4])) | {liar: remembering([3, 4, 5, 6])}
    assert refused(memories) == {liar}
    assert refused(memories | {liar: remembering([1, 2, 3, 4], [3, 4, 5, 6])}) == {liar}


def test_a_liar_that_repeats_the_truth_beside_its_lie_does_not_make_the_truth_doubtful() -> None:
    truth, lie = remembering([1, 2, 3, 4]), remembering([3, 4, 5, 6])
    assert refused({1: truth, 2: truth, 8: truth | lie}) == {8}


SETS = st.lists(st.sets(st.sampled_from(NODES), min_size=1), max_size=2)


@given(memories=st.dictionaries(st.sampled_from(NODES), SETS), nodes=st.sets(st.sampled_from(NODES), min_size=5))
def test_the_memories_that_are_left_allow_the_sum_and_nobody_is_refused_where_all_of_them_do(
    memories: dict[int, list[set[int]]], nodes: set[int]
) -> None:
    made = cohort({node: remembering(*sets) for node, sets in memories.items()})
    found = forbidding(made, [frozenset(nodes)], ALL, colluders=1)
    left = [opening for member in made.members if member.node not in found for opening in member.memory]
    require_openable(left, ALL, (frozenset(nodes),), 1)
    if found:
        with pytest.raises(CohortRefused):
            require_openable(made.memory, ALL, (frozenset(nodes),), 1)
