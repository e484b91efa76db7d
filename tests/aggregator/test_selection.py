"""``aggregator.selection``: who is invited, who of them is there, and how long a round waits for them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from aggregator.absences import Absences
from aggregator.asking import Asker
from aggregator.selection import Selection
from aggregator.tally import Tally
from fleet.flower import NodeInfo
from protocol.errors import QuorumError
from protocol.openings import Nodes
from tests import factories
from tests.aggregator.conftest import BAD, MakeScene, flower
from tests.aggregator.stub_grid import NAME, NODES, TRAIN, Ask, Scene, StubGrid, Watch, fails, small_plan

Event = Callable[[StubGrid], None]
ROSTER = factories.roster(NODES)


class NamedGrid(StubGrid):
    """A grid of nodes that answer nothing; they are registered under these names."""

    def __init__(self, nodes: Iterable[int]) -> None:
        super().__init__([])
        self.names = {flower(node)[0]: f"node-{node}" for node in nodes}

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=source, name=name) for source, name in self.names.items()]


@dataclass
class Clock:
    """A clock that only sleeping moves on; what is to happen meanwhile happens in the first sleep, the second, …"""

    now: float = 0.0
    events: list[Callable[[], None]] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.events:
            self.events.pop(0)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    patched = SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep)
    monkeypatch.setattr("aggregator.selection.time", patched)
    return made


def selection(grid: StubGrid, **changes: Any) -> Selection:
    return selecting(grid, Watch(grid), **changes)


def selecting(grid: StubGrid, watch: Watch, **changes: Any) -> Selection:
    plan = small_plan(**changes)
    return Selection(
        grid, Asker(grid, factories.RUN, plan.deadline, watch), plan, ROSTER, Absences(Path("/nowhere"), ROSTER), watch
    )


def drawn(online: Iterable[int], tally: Tally, **changes: Any) -> Nodes:
    """Who is invited where these are online."""
    return selection(NamedGrid(online), **changes).select(tally)[0]


def begun(invited: Iterable[int], **changes: Any) -> Tally:
    """A round in which a cohort of some of these was announced."""
    return Tally(1, attempt=1, invited=frozenset(invited), announced=True, **changes)


# --- who is drawn --------------------------------------------------------------------------------------


@given(
    online=st.sets(st.sampled_from(NODES), min_size=5),
    round_=st.integers(1, 1000),
    fraction=st.floats(0.01, 1),
    most=st.integers(5, 10),
)
def test_as_many_as_the_plan_says_are_drawn_from_those_who_are_online_and_always_the_same(
    online: set[int], round_: int, fraction: float, most: int
) -> None:
    plan = {"fraction": fraction, "min_cohort": 5, "max_cohort": most}
    invited = drawn(online, Tally(round_), **plan)
    assert invited <= online
    assert 5 <= len(invited) <= most
    assert len(invited) in (5, most) or len(invited) - 1 < fraction * len(online) <= len(invited)
    assert drawn(sorted(online, reverse=True), Tally(round_, attempt=3), **plan) == invited


def test_every_node_has_its_turn(clock: Clock) -> None:
    several = [drawn(NODES, Tally(round_), fraction=0.3) for round_ in range(1, 41)]
    assert frozenset().union(*several) == set(NODES)
    assert {len(invited) for invited in several} == {3}
    assert several != [drawn(NODES, Tally(round_), fraction=0.3, seed=7) for round_ in range(1, 41)]


def test_a_node_that_is_not_on_the_roster_is_not_invited() -> None:
    grid = NamedGrid(NODES[:4])
    grid.names |= {1: "node-4", 2: "node", 3: "node-2 "}
    invited, there = selection(grid).select(Tally(1))
    assert invited == set(there) == set(NODES[:4])
    assert selection(grid).online(Tally(1)) == dict(zip(NODES[:4], flower(*NODES[:4]), strict=True))


def test_the_nodes_that_are_there_stand_in_the_order_of_their_numbers() -> None:
    there = selection(NamedGrid(reversed(NODES))).select(Tally(1))[1]
    assert list(there.items()) == list(zip(NODES, flower(*NODES), strict=True))


@pytest.mark.parametrize("round_", range(1, 6))
def test_whoever_sits_the_round_out_is_drawn_only_where_there_are_too_few_others(round_: int) -> None:
    for away in range(len(NODES) + 1):
        tally = Tally(round_, sitting_out=set(flower(*NODES[:away])))
        invited = drawn(NODES, tally, fraction=0.4)
        assert len(invited & set(NODES[:away])) == max(0, 4 - (len(NODES) - away))
        assert len(invited) == 4


@pytest.mark.parametrize(
    ("invited", "changes", "least"),
    [
        (3, {}, 3),
        (4, {}, 3),
        (5, {}, 4),
        (10, {}, 6),
        (10, {"colluders": 3, "min_cohort": 5}, 7),
        (10, {"min_cohort": 8}, 8),
        (10, {"colluders": 0, "min_cohort": 2}, 6),
    ],
)
def test_a_quorum_is_more_than_half_of_the_invited_and_the_colluders_and_never_below_the_plans_cohort(
    invited: int, changes: dict[str, int], least: int
) -> None:
    assert selection(NamedGrid(NODES), **changes).quorum(invited) == least


# --- a round that was begun ----------------------------------------------------------------------------


def test_once_a_cohort_was_announced_the_same_are_invited_whoever_is_online() -> None:
    invited, there = selection(NamedGrid(NODES[2:])).select(begun(NODES[:6]))
    assert invited == set(NODES[:6])
    assert list(there) == list(NODES[2:6])


def test_before_a_cohort_was_announced_whoever_is_online_is_drawn_from_anew() -> None:
    tally = Tally(1, attempt=3, invited=frozenset(NODES[:4]))
    assert drawn(NODES[4:], tally) == set(NODES[4:])


def test_a_node_that_is_left_out_of_a_round_stays_invited_and_is_not_asked() -> None:
    tally = begun(NODES[:6], excluded={NODES[0]})
    invited, there = selection(NamedGrid(NODES)).select(tally)
    assert invited == set(NODES[:6])
    assert list(there) == list(NODES[1:6])


# --- waiting -------------------------------------------------------------------------------------------


def test_a_round_waits_until_as_many_are_online_as_make_a_sum(clock: Clock) -> None:
    grid = NamedGrid(NODES[:1])
    watch = Watch(grid)
    clock.events = [lambda n=n: grid.names.update({flower(n)[0]: f"node-{n}"}) for n in NODES[1:4]]  # type: ignore[misc]
    invited, there = selecting(grid, watch).select(Tally(7))
    assert invited == set(there) == set(NODES[:3])
    assert len(clock.events) == 1, "it has waited twice"
    assert watch.nodes == [(7, dict(zip(flower(*NODES[:3]), ("node-2", "node-3", "node-5"), strict=True)))]


def test_a_round_that_was_begun_waits_for_a_quorum_of_its_own(clock: Clock) -> None:
    grid = NamedGrid((*NODES[:3], *NODES[5:]))
    clock.events = [lambda: grid.names.update({flower(NODES[4])[0]: f"node-{NODES[4]}"})]
    invited, there = selection(grid).select(begun(NODES[:5]))
    assert invited == set(NODES[:5])
    assert list(there) == [*NODES[:3], NODES[4]]


@pytest.mark.parametrize(
    ("tally", "online", "told"),
    [
        (Tally(1), NODES[:2], "2 nodes are online; the plan needs 3"),
        (begun(NODES[:5]), NODES[2:], "3 nodes of the 5 that this round was begun with are online; the plan needs 4"),
        (begun(NODES[:5], excluded={3}), NODES[:4], "3 nodes of the 5 that this round was begun with are online"),
    ],
)
def test_a_round_that_has_waited_for_its_deadline_in_vain_is_given_up_with_what_to_do(
    clock: Clock, tally: Tally, online: tuple[int, ...], told: str
) -> None:
    grid = NamedGrid(online)
    watch = Watch(grid)
    with pytest.raises(QuorumError, match=rf"^{told}.*Start more clients, then resume the run\.$"):
        selecting(grid, watch, deadline=60.0).select(tally)
    assert 60 < clock.now < 62
    assert watch.nodes == []


# --- nodes that are registered under no name ---------------------------------------------------------------


@pytest.fixture
def nameless(scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Four nodes of a grid that knows their numbers alone, as Flower's simulation does."""
    s = scene(4, rounds=2)
    monkeypatch.setattr(s.grid, "get_nodes", lambda: [NodeInfo(node_id=i) for i in s.grid.get_node_ids()])
    return s


def test_nodes_that_are_registered_under_no_name_are_asked_for_it_once(nameless: Scene) -> None:
    watch = nameless.run()
    assert [total.nodes for _, total, _ in watch.sums] == [{2, 3, 5, 8}] * 2
    assert [ask for ask in nameless.grid.asked if ask[0] == NAME] == [(NAME, 1, 1, (2, 3, 5, 8))]
    assert set(watch.nodes[0][1].values()) == {"node-2", "node-3", "node-5", "node-8"}


@pytest.mark.parametrize("name", [b"stranger", b"\xff\xfe", b"node-5" * 1000])
def test_one_that_gives_a_name_off_the_roster_is_not_invited(nameless: Scene, name: bytes) -> None:
    nameless.grid.when(NAME, lambda ask: ask.reply({"name": name}), BAD)
    assert [total.nodes for _, total, _ in nameless.run().sums] == [{2, 3, 8}] * 2


def test_one_that_gives_the_name_of_another_gets_nothing_into_a_sum(nameless: Scene) -> None:
    nameless.grid.when(NAME, lambda ask: ask.reply({"name": b"node-2"}), BAD)
    nameless.grid.when(TRAIN, fails("this node refuses the announced cohort"), BAD)
    with pytest.raises(QuorumError, match="too few clients"):
        nameless.run()
    assert nameless.watch.sums == []


def test_one_that_does_not_say_its_name_is_asked_again(nameless: Scene) -> None:
    silences = [True, True]

    def late(ask: Ask) -> Message | None:
        return None if silences and silences.pop() else ask.reply(ask.honest())

    nameless.grid.when(NAME, late, BAD)
    assert [total.nodes for _, total, _ in nameless.run().sums][1:] == [{2, 3, 5, 8}]
