"""A search for attacks on which sums may be opened: random schedules, and what follows from the sums that they open.

The aggregator invites, announces and asks to release what it likes of whom it likes, in any order of runs, rounds and
attempts, from the states that there are: it restarts, runs the same plan again, goes back, hands two models of a round
to different nodes, tells each node of another sum. It divides cohorts into groups, and asks for the sums of some of
them together, or of parts of them. Up to ``colluders`` of the clients are on its side: they give away all that they
hold, their shares of everybody's secrets included. The others decide as real clients do, with the ledger that real
clients use. What must hold, for the sums of one starting state and for those of one round: no linear combination of
them, and of whatever corrupt clients know, touches fewer honest clients than ``colluders`` + 2 less the corrupt ones.

A node that has forgotten (its ledger was lost, or an old one put back) consents anew to what it had helped to open: it
counts as a corrupt one here, though its own update stays to be protected.

``python -m tests.attacks.search --schedules 100000`` searches longer than the test does.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Final

from edge_client.ledger import Ledger, Sent
from protocol import openings
from protocol.call import Call
from protocol.errors import CohortRefused, Duplicate, PeerMismatch
from protocol.openings import Memory, Nodes, smallest
from protocol.sharing import threshold

_PRIME: Final = (1 << 31) - 1
_RUNS: Final = (bytes(16), bytes([1]) * 16)
_NODES: Final = 16
_ATTEMPTS: Final = 5
Sums = dict[bytes, set[Nodes]]
Sets = tuple[Nodes, ...]


class Forgettable(Ledger):
    """A ledger that no process has to find again."""

    def save(self) -> None:
        """Stay in memory."""

    def copy(self) -> "Forgettable":
        """What a backup would hold."""
        return Forgettable(Path(), dict(self.asked), list(self.given))


@dataclass(frozen=True)
class Attempt:
    """What the aggregator does in one attempt, in this order.

    Attributes:
        call: Run, round and attempt.
        state: What its members train from.
        invited: Who is invited.
        cohort: Who is announced.
        told: Who hears of the cohort.
        releases: Sets, and who is asked to release their sums together.
        groups: How the cohort is divided; not at all by default.
    """

    call: Call
    state: bytes
    invited: Nodes
    cohort: Nodes
    told: Nodes
    releases: tuple[tuple[Sets, Nodes], ...]
    groups: Sets = ()


@dataclass(frozen=True)
class Schedule:
    """What an aggregator does.

    Attributes:
        colluders: The plan's.
        corrupt: Clients on the aggregator's side.
        forgetful: Clients that forget, and before which attempt: 0 for everything, or back to what an attempt had left.
        attempts: The attempts.
    """

    colluders: int
    corrupt: Nodes
    forgetful: dict[int, tuple[int, int]]
    attempts: list[Attempt]


@dataclass
class Opened:
    """The sets whose sums were opened, by starting state and by run and round; corrupt clients are left out."""

    by_state: Sums = field(default_factory=lambda: defaultdict(set))
    by_round: Sums = field(default_factory=lambda: defaultdict(set))


@dataclass
class Honest:
    """What one honest node has signed last, and what it keeps."""

    ledger: Forgettable
    attended: tuple[Call, bytes, Nodes, Memory] | None = None


def play(schedule: Schedule) -> Opened:
    """Let the honest clients decide; the sums that enough of them have helped to open."""
    everybody = {node for attempt in schedule.attempts for node in attempt.invited}
    nodes = {node: Honest(Forgettable(Path())) for node in everybody - schedule.corrupt}
    backups: dict[int, list[Forgettable]] = {node: [Forgettable(Path())] for node in nodes}
    opened = Opened()
    for number, attempt in enumerate(schedule.attempts):
        for node, (when, back) in schedule.forgetful.items():
            if when == number and node in nodes:
                nodes[node] = Honest(backups[node][min(back, number)].copy())
        if found := _play(attempt, nodes, schedule):
            opened.by_state[attempt.state] |= found
            opened.by_round[attempt.call.run + attempt.call.round.to_bytes(4, "little")] |= found
        for node, honest in nodes.items():
            backups[node].append(honest.ledger.copy())
    return opened


def _play(attempt: Attempt, nodes: dict[int, Honest], schedule: Schedule) -> set[Nodes]:
    """One attempt: the honest clients in each sum that it opens."""
    least = max(smallest(schedule.colluders), threshold(len(attempt.invited), schedule.colluders))
    for node in sorted(attempt.invited & nodes.keys()):
        with suppress(CohortRefused, Duplicate, PeerMismatch):
            _attend(attempt, node, nodes[node], schedule.colluders)
    signed = (attempt.call, attempt.state, attempt.invited)
    attended = {n for n in attempt.invited & nodes.keys() if (nodes[n].attended or ())[:3] == signed}
    ready = attempt.cohort & (attended | schedule.corrupt) & attempt.invited
    parts = tuple(part for group in attempt.groups or (ready,) if (part := group & ready))
    cohort = Nodes().union(*parts)
    memories = [a[3] for n in cohort & attended if (a := nodes[n].attended) is not None]
    memory: Memory = frozenset().union(*memories)
    given = set()
    for node in sorted(attempt.told & cohort & attended):
        with suppress(CohortRefused, Duplicate, PeerMismatch):
            _contribute(attempt, node, nodes[node], parts, memory, least, schedule.colluders)
            given.add(node)
    consents: dict[int, Sets] = {}
    for sets, asked in attempt.releases:
        inside = tuple(one & cohort for one in sets if one & cohort)
        for node in sorted(asked & given):
            with suppress(CohortRefused, Duplicate):
                _release(attempt, node, nodes[node], inside, parts, memory, least, schedule.colluders)
                consents[node] = inside
    return _opened(parts, given, consents, attempt, schedule)


def _attend(attempt: Attempt, node: int, honest: Honest, colluders: int) -> None:
    honest.ledger.require(attempt.call, node)
    if honest.attended is not None and honest.attended[0] == attempt.call:
        return
    memory = honest.ledger.memory(attempt.call, attempt.state)
    openings.require_openable(memory, attempt.invited, (), colluders)
    honest.attended = (attempt.call, attempt.state, attempt.invited, memory)
    honest.ledger.note(attempt.call)


def _contribute(
    attempt: Attempt, node: int, honest: Honest, parts: Sets, memory: Memory, least: int, colluders: int
) -> None:
    honest.ledger.require(attempt.call, node)
    if sum(map(len, parts)) < least or min(map(len, parts)) < fewest(colluders):
        raise CohortRefused("too few")
    openings.require_openable(memory, attempt.invited, (), colluders)
    call = attempt.call
    digest = repr(sorted(map(sorted, parts))).encode()
    honest.ledger.give(Sent(call.run, call.round, call.attempt, attempt.state, digest, attempt.invited), node)


def _release(
    attempt: Attempt, node: int, honest: Honest, sets: Sets, parts: Sets, memory: Memory, least: int, colluders: int
) -> None:
    honest.ledger.require(attempt.call, node)
    places = [next((place for place, part in enumerate(parts) if one <= part), -1) for one in sets]
    if -1 in places or len({*places}) < len(places) or not any(node in one for one in sets):
        raise CohortRefused("not these sums")
    if sum(map(len, sets)) < least or min(map(len, sets)) < fewest(colluders):
        raise CohortRefused("too few")
    openings.require_openable(memory, attempt.invited, sets, colluders)
    honest.ledger.release(attempt.call, sets, node)


def _opened(
    parts: Sets, given: set[int], consents: dict[int, Sets], attempt: Attempt, schedule: Schedule
) -> set[Nodes]:
    """Whose sums the shares that were given away open: of a member the seed or the key, where there are enough of it.

    Consents to different sums count together, member by member: a share is a share. Of members whose group is not
    opened a consent has none.
    """
    least = threshold(len(attempt.invited), schedule.colluders) - len(attempt.invited & schedule.corrupt)
    seeds, keys = Counter[int](), Counter[int]()
    for sets in consents.values():
        for part in parts:
            inside = part.intersection(Nodes().union(*sets))
            if inside:
                seeds.update(inside)
                keys.update(part - inside)
    found = set()
    for part in parts:
        members = part - schedule.corrupt
        inside = frozenset(node for node in members if seeds[node] >= least)
        outside = frozenset(node for node in members if keys[node] >= least)
        if inside and inside <= given and members <= inside | outside:
            found.add(inside)
    return found


def fewest(colluders: int) -> int:
    """The smallest cohort that a plan can have, and so the smallest group."""
    return smallest(colluders)


def exposed(sums: Iterable[frozenset[int]], corrupt: Collection[int], least: int) -> frozenset[int]:
    """Fewer than ``least`` honest clients that some combination of these sums touches alone; empty if there are none.

    Combinations are modulo a prime: what is possible with rational numbers is possible there.
    """
    rows = [cohort.difference(corrupt) for cohort in sums]
    # Clients that stand in the same sums cannot be told apart: one column for all of them.
    atoms: dict[tuple[bool, ...], set[int]] = defaultdict(set)
    for node in frozenset().union(*rows):
        atoms[tuple(node in row for row in rows)].add(node)
    full = _rank([[int(k[i]) for k in atoms] for i in range(len(rows))])
    small = [key for key, nodes in atoms.items() if len(nodes) < least]
    for count in range(1, least):
        for touched in combinations(small, count):
            nodes = frozenset().union(*(atoms[key] for key in touched))
            if len(nodes) < least:
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
    least = smallest(schedule.colluders) - len(schedule.corrupt)
    for sums in (*opened.by_state.values(), *opened.by_round.values()):
        if found := exposed(sorted(sums, key=sorted), schedule.corrupt, least):
            return found
    return frozenset()


def draw(random: Random) -> Schedule:
    """A schedule whose attempts mostly are what clients agree to, and sometimes are not."""
    colluders = random.randrange(4)
    nodes = range(random.randint(smallest(colluders) + 1, _NODES))
    bad = random.sample(nodes, random.randint(0, min(colluders, len(nodes) - 2)))
    corrupt = frozenset(bad[: random.randint(0, len(bad))])
    attempts: list[Attempt] = []
    for _ in range(random.randint(2, _ATTEMPTS)):
        attempts.append(_attempt(random, attempts, nodes, colluders))
    forgetful = {}
    for node in bad[len(corrupt) :]:
        when = random.randint(0, len(attempts))
        forgetful[node] = (when, random.randint(0, when))
    return Schedule(colluders, corrupt, forgetful, attempts)


def _attempt(random: Random, before: Sequence[Attempt], nodes: Collection[int], colluders: int) -> Attempt:
    everybody = frozenset(nodes)
    if not before:
        invited = everybody if random.random() < 0.7 else _some(random, everybody, len(everybody) // 2)
        return Attempt(Call(_RUNS[0], 1, 1), bytes(32), *_asked(random, invited, invited, before, colluders))
    last = random.choice([before[-1], before[-1], random.choice(before)])
    call, state, kind = last.call, last.state, random.random()
    if kind < 0.6:
        call = Call(call.run, call.round, call.attempt + 1)
    elif kind < 0.8:
        call = Call(random.choice(_RUNS), call.round + random.choice((0, 1, 1)), random.randint(1, 3))
    if random.random() < 0.25:
        state = bytes([random.randrange(2)]) * 32
    kind = random.random()
    invited = last.invited
    if kind > 0.9:
        invited = _some(random, everybody, smallest(colluders))
    elif kind > 0.6:  # one or two others
        invited = invited.symmetric_difference(random.sample(sorted(everybody), random.choice((1, 2))))
    cohort = invited if random.random() < 0.7 else _some(random, invited, len(invited) - 2)
    return Attempt(call, state, *_asked(random, invited, cohort, before, colluders))


def _asked(
    random: Random, invited: Nodes, cohort: Nodes, before: Sequence[Attempt], colluders: int
) -> tuple[Nodes, Nodes, Nodes, tuple[tuple[Sets, Nodes], ...], Sets]:
    """Who is announced, who is told, which sums are to be opened together, by whom, and of which groups."""
    told = cohort if random.random() < 0.7 else _some(random, cohort, len(cohort) - 2)
    groups = _divided(random, cohort, colluders) if random.random() < 0.4 else ()
    parts = groups or (cohort,)
    families = [parts]
    for _ in range(random.choice((0, 0, 1, 2))):
        opened = [one for attempt in before for sets, _ in attempt.releases for one in sets] or [cohort]
        less = tuple(_some(random, part, len(part) - random.randint(1, colluders + 2)) for part in parts)
        some = tuple(random.sample(parts, random.randint(1, len(parts))))
        mixed = tuple(random.choice(both) for both in zip(parts, less, strict=True))
        other = random.choice([(random.choice(opened),), (told,), (_half(cohort),), (cohort - _half(cohort),)])
        families.append(random.choice([less, less, mixed, some, some, other]))
    random.shuffle(families)
    least = threshold(len(invited), colluders)
    every = random.random() < 0.5
    asked = []
    for sets in families:
        everybody = Nodes().union(*sets)
        asked.append(everybody if every else _some(random, everybody, min(least, len(everybody))))
    return invited, cohort, told, tuple(zip(families, asked, strict=True)), groups


def _divided(random: Random, cohort: Nodes, colluders: int) -> Sets:
    """Two or more groups, mostly as small as may be; now and then with members that are in none of them."""
    order = random.sample(sorted(cohort), len(cohort))
    if random.random() < 0.3:
        order = order[random.randint(0, smallest(colluders)) :]
    count = len(order) // max(1, smallest(colluders) - (random.random() < 0.1))
    count = count if random.random() < 0.6 else random.randint(0, count)
    return tuple(frozenset(order[start::count]) for start in range(count)) if count > 1 else ()


def _half(nodes: Nodes) -> Nodes:
    return frozenset(sorted(nodes)[: len(nodes) // 2])


def _some(random: Random, nodes: Nodes, at_least: int) -> Nodes:
    return frozenset(random.sample(sorted(nodes), random.randint(max(0, min(at_least, len(nodes))), len(nodes))))


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
