"""Who is invited to an attempt, and where they are reached."""

import time
from collections.abc import Mapping
from math import ceil
from typing import Final

import numpy as np
from flwr.serverapp import Grid

from aggregator.absences import ABSENT, SPOILED, Absences
from aggregator.asking import Asker
from aggregator.observer import Observer
from aggregator.tally import Tally
from protocol.call import Action
from protocol.errors import QuorumError
from protocol.openings import Nodes
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.sharing import threshold
from protocol.text import LONGEST_NAME, cleaned

_WAIT_SECONDS: Final = 0.5
_SAMPLING: Final = 0x53414D50


class Selection:
    """Chooses among the nodes of a grid.

    Args:
        grid: Flower's grid of nodes.
        asker: Asks nodes that are registered under no name, as in Flower's simulation, who they are. What they say is
            only where they are looked for: who a message is from, its signature says.
        plan: The plan.
        roster: Which nodes there are; a node of the grid is known by the name that it is registered under.
        absences: Who is left out for some rounds.
        observer: Who is told.
    """

    def __init__(
        self, grid: Grid, asker: Asker, plan: Plan, roster: Roster, absences: Absences, observer: Observer
    ) -> None:
        self._grid, self._asker, self._plan, self._observer = grid, asker, plan, observer
        self._roster, self._absences = roster, absences
        self._numbers = {node.name: number for number, node in roster.nodes.items()}
        self._told: dict[int, str] = {}

    def quorum(self, invited: int) -> int:
        """The fewest of so many invited nodes that make a sum."""
        return max(self._plan.min_cohort, threshold(invited, self._plan.colluders))

    def online(self, tally: Tally) -> dict[int, int]:
        """By their numbers on the roster, the numbers in Flower of the nodes that are there."""
        named = {source: name for source, name in self._named(tally).items() if name in self._numbers}
        return {self._numbers[name]: source for source, name in named.items()}

    def _named(self, tally: Tally) -> dict[int, str]:
        """The nodes that are there, each with the name that it is registered under, or else gives itself."""
        nodes = {node.node_id: node.name for node in self._grid.get_nodes()}
        nameless = [source for source, name in nodes.items() if not name and source not in self._told]
        if nameless:
            for answer in self._asker.ask(tally, Action.NAME, {source: {} for source in nameless}):
                self._told[answer.source] = cleaned(answer.frames["name"].decode(errors="replace"), LONGEST_NAME)
        return {source: name or self._told.get(source, "") for source, name in nodes.items()}

    def select(self, tally: Tally) -> tuple[Nodes, Mapping[int, int]]:
        """Who is invited, and, of those, by their numbers, who is there and where.

        A random part of the nodes that are online and not left out for some rounds; once a cohort was announced in a
        round, the same in all its attempts. Waits for as many as make a sum.

        Raises:
            QuorumError: They do not come in time.
        """
        end = time.monotonic() + self._plan.deadline
        while True:
            online = self.online(tally)
            invited = tally.invited if tally.announced else self._draw(tally, online)
            there = {number: source for number, source in online.items() if number in invited - tally.excluded}
            least = self.quorum(len(invited))
            if len(there) >= least:
                self._observer.online(tally.round, self._named(tally))
                return invited, dict(sorted(there.items()))
            if time.monotonic() > end:
                which = f" of the {len(invited)} that this round was begun with" if tally.announced else ""
                spoiled = self._absences.left_out(tally.round, SPOILED) & online.keys()
                out = f" without {self._roster.names(spoiled)}, one of which spoiled a sum" if spoiled else ""
                raise QuorumError(
                    f"{len(there)} nodes{which} are online{out}; the plan needs {least}. Start more clients, then "
                    "resume the run."
                )
            time.sleep(_WAIT_SECONDS)

    def _draw(self, tally: Tally, online: Mapping[int, int]) -> Nodes:
        """As many as the plan says, in place of those who sit the round out others where there are others.

        Those who are left out as absent are asked where too few are there without them. Those who may have spoiled a
        sum are not: they would be in the way of the others.
        """
        absent, spoiled = (self._absences.left_out(tally.round, reason) for reason in (ABSENT, SPOILED))
        there = online.keys() - spoiled
        numbers = sorted(there if len(there - absent) < self._plan.min_cohort else there - absent)
        count = min(self._plan.max_cohort, max(self._plan.min_cohort, ceil(self._plan.fraction * len(numbers))))
        order = np.random.default_rng([self._plan.seed, tally.round, _SAMPLING])
        drawn = [numbers[i] for i in order.permutation(len(numbers))]
        drawn.sort(key=lambda number: online[number] in tally.sitting_out)
        return frozenset(drawn[:count])
