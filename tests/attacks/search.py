"""A search for attacks on which sums may be opened: random schedules, and what follows from the sums that they open.

The aggregator announces what it likes to whom it likes, of any run, round and attempt, in any order, from the states
that there are: it restarts, runs the same plan again, goes back, hands two models of a round to different nodes. Up to
``colluders`` of the clients are on its side. The others decide with the ledger that real clients use. What must hold,
for the sums of one starting state and for those of one round: no linear combination of them, and of whatever corrupt
clients know, touches fewer honest clients than ``colluders`` + 2 less the corrupt ones.

A node that has forgotten (its ledger was lost, or an old one put back) consents anew to what it had helped to open: it
counts as a corrupt one here, though its own update stays to be protected.

``python -m tests.attacks.search --schedules 100000`` searches longer than the test does.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Final

from edge_client.ledger import Ledger, Sent
from protocol.call import Call
from protocol.cohort import smallest, successor_sizes
from protocol.errors import CohortRefused, Duplicate, PeerMismatch

_PRIME: Final = (1 << 31) - 1
_RUNS: Final = (bytes(16), bytes([1]) * 16)
_NODES: Final = 24
_STEPS: Final = 12
Sums = dict[bytes, set[frozenset[int]]]


class Memory(Ledger):
    """A ledger that no process has to find again."""

    def save(self) -> None:
        """Stay in memory."""

    def copy(self) -> "Memory":
        """What a backup would hold."""
        return Memory(Path(), dict(self.asked), list(self.given))


@dataclass(frozen=True)
class Step:
    """One announcement.

    Attributes:
        call: Run, round and attempt.
        state: The state that its members have trained from.
        cohort: Who is announced.
        told: Who hears of it.
    """

    call: Call
    state: bytes
    cohort: frozenset[int]
    told: frozenset[int]


@dataclass(frozen=True)
class Schedule:
    """What an aggregator does.

    Attributes:
        colluders: The plan's.
        corrupt: Clients on the aggregator's side.
        forgetful: Clients that forget, and before which step: 0 for everything, or back to what a step had left.
        steps: The announcements.
    """

    colluders: int
    corrupt: frozenset[int]
    forgetful: dict[int, tuple[int, int]]
    steps: list[Step]


@dataclass
class Opened:
    """The cohorts whose sums were completed, by starting state and by run and round."""

    by_state: Sums = field(default_factory=lambda: defaultdict(set))
    by_round: Sums = field(default_factory=lambda: defaultdict(set))


def play(schedule: Schedule) -> Opened:
    """Let the honest clients decide; the sums to which each honest member has contributed."""
    everybody = {node for step in schedule.steps for node in step.cohort}
    ledgers = {node: Memory(Path()) for node in everybody - schedule.corrupt}
    backups: dict[int, list[Memory]] = {node: [Memory(Path())] for node in ledgers}
    given: dict[bytes, set[int]] = defaultdict(set)
    opened = Opened()
    for number, step in enumerate(schedule.steps):
        for node, (when, back) in schedule.forgetful.items():
            if when == number and node in ledgers:
                ledgers[node] = backups[node][min(back, number)].copy()
        digest = _digest(step)
        for node in sorted(step.told & step.cohort - schedule.corrupt):
            if _contributes(ledgers[node], node, step, digest, schedule.colluders):
                given[digest].add(node)
        if given[digest] >= step.cohort - schedule.corrupt:
            opened.by_state[step.state].add(step.cohort)
            opened.by_round[step.call.run + step.call.round.to_bytes(4, "little")].add(step.cohort)
        for node, ledger in ledgers.items():
            backups[node].append(ledger.copy())
    return opened


def _contributes(ledger: Memory, node: int, step: Step, digest: bytes, colluders: int) -> bool:
    """Train and contribute, as `edge_client.client.Client` does."""
    sent = Sent(step.call.run, step.call.round, step.call.attempt, step.state, digest, step.cohort)
    try:
        ledger.require(step.call, node)
        ledger.note(step.call)
        if len(step.cohort) < smallest(colluders):
            return False
        ledger.consent(sent, node, smallest(colluders), colluders)
    except (CohortRefused, Duplicate, PeerMismatch):
        return False
    ledger.give(sent)
    return True


def _digest(step: Step) -> bytes:
    call = step.call
    head = call.run + step.state + call.round.to_bytes(4, "little") + call.attempt.to_bytes(4, "little")
    return head + b"".join(node.to_bytes(4, "little") for node in sorted(step.cohort))


def exposed(sums: Iterable[frozenset[int]], corrupt: Collection[int], fewest: int) -> frozenset[int]:
    """Fewer than ``fewest`` honest clients that some combination of these sums touches alone; empty if there are none.

    Combinations are modulo a prime: what is possible with rational numbers is possible there.
    """
    rows = [cohort.difference(corrupt) for cohort in sums]
    # Clients that stand in the same sums cannot be told apart: one column for all of them.
    atoms: dict[tuple[bool, ...], set[int]] = defaultdict(set)
    for node in frozenset().union(*rows):
        atoms[tuple(node in row for row in rows)].add(node)
    full = _rank([[int(k[i]) for k in atoms] for i in range(len(rows))])
    small = [key for key, nodes in atoms.items() if len(nodes) < fewest]
    for count in range(1, fewest):
        for touched in combinations(small, count):
            nodes = frozenset().union(*(atoms[key] for key in touched))
            if len(nodes) < fewest:
                rest = [key for key in atoms if key not in touched]
                # If leaving these columns out makes rows dependent, a combination vanishes everywhere but there.
                if _rank([[int(key[i]) for key in rest] for i in range(len(rows))]) < full:
                    return nodes
    return frozenset()


def _rank(matrix: list[list[int]]) -> int:
    """The rank modulo a prime, by Gauss."""
    rows, rank = [row[:] for row in matrix], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, _PRIME)
        for row in rows[rank + 1 :]:
            if factor := row[column] * inverse % _PRIME:
                row[:] = [(a - factor * b) % _PRIME for a, b in zip(row, rows[rank], strict=True)]
        rank += 1
    return rank


def attack(schedule: Schedule, opened: Opened) -> frozenset[int]:
    """Clients that the sums of a schedule expose; empty if there are none."""
    fewest = smallest(schedule.colluders) - len(schedule.corrupt)
    for sums in (*opened.by_state.values(), *opened.by_round.values()):
        if found := exposed(sorted(sums, key=sorted), schedule.corrupt, fewest):
            return found
    return frozenset()


def draw(random: Random) -> Schedule:
    """A schedule whose cohorts mostly follow one another as they may, and sometimes do not."""
    colluders = random.randrange(4)
    nodes = range(random.randint(smallest(colluders), random.choice((10, _NODES))))
    bad = random.sample(nodes, random.randint(0, min(colluders, len(nodes) - 2)))
    corrupt = frozenset(bad[: random.randint(0, len(bad))])
    steps = [_first(random, nodes)]
    for _ in range(random.randrange(_STEPS)):
        steps.append(_next(random, steps, nodes, colluders))
    forgetful = {}
    for node in bad[len(corrupt) :]:
        when = random.randint(0, len(steps))
        forgetful[node] = (when, random.randint(0, when))
    return Schedule(colluders, corrupt, forgetful, steps)


def _first(random: Random, nodes: Collection[int]) -> Step:
    cohort = frozenset(nodes if random.random() < 0.7 else random.sample(list(nodes), random.randint(1, len(nodes))))
    return Step(Call(_RUNS[0], 1, 1), bytes(32), cohort, cohort)


def _next(random: Random, steps: list[Step], nodes: Collection[int], colluders: int) -> Step:
    last = random.choice([steps[-1], steps[-1], random.choice(steps)])
    first = random.choice(steps)
    kind = random.random()
    if kind < 0.3:
        cohort = last.cohort
    elif kind < 0.9:
        sizes = [*successor_sizes(len(first.cohort), len(last.cohort), smallest(colluders), colluders)]
        size = random.choice(sizes or [len(last.cohort)])
        cohort = frozenset(random.sample(sorted(last.cohort), min(size, len(last.cohort))))
    else:
        cohort = frozenset(random.sample(list(nodes), random.randint(1, len(nodes))))
    call, state = last.call, last.state
    kind = random.random()
    if kind < 0.6:
        call = Call(call.run, call.round, call.attempt + 1)
    elif kind < 0.75:
        call = Call(call.run, call.round + random.choice((1, 1, 2)), 1)
    elif kind < 0.9:
        call = Call(random.choice(_RUNS), random.choice(steps).call.round, random.randint(1, 3))
    if random.random() < 0.3:
        state = bytes([random.randrange(3)]) * 32
    told = cohort if random.random() < 0.7 else frozenset(random.sample(sorted(cohort), random.randint(0, len(cohort))))
    return Step(call, state, cohort, told)


def main() -> None:
    """Search, and stop at the first attack."""
    parser = argparse.ArgumentParser(description="Search for schedules whose opened sums expose a client.")
    parser.add_argument("--schedules", type=int, default=100_000, help="how many to try")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others count on from it")
    options = parser.parse_args()
    several = 0
    for seed in range(options.seed, options.seed + options.schedules):
        schedule = draw(Random(seed))  # noqa: S311
        opened = play(schedule)
        if found := attack(schedule, opened):
            raise SystemExit(f"seed {seed} exposes {sorted(found)}: {schedule}")
        several += max(map(len, opened.by_state.values()), default=0) > 1
    sys.stdout.write(f"{options.schedules} schedules, {several} with several sums of one state: nobody is exposed\n")


if __name__ == "__main__":
    main()
