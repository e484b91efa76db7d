"""Which nodes are left out for some rounds: those that were missing from sums, and those whose sums were spoiled.

``absences.json`` in the run's folder keeps it by the nodes' names. A node that is invited and not in the sum twice in a
row is left out of the next round; where it is missing again when it is asked again, of two rounds, then of four, up to
64. A node whose group's sum was spoiled is left out likewise, from the first time on. Who is in a good sum is forgiven.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from pydantic import Field

from protocol.documents import Count, Document, Part, Table
from protocol.errors import CheckpointError, StorageError
from protocol.openings import Nodes
from protocol.roster import Roster

ABSENCES_FILE: Final = "absences.json"
ABSENT, SPOILED = "absent", "spoiled"
_PATIENCE: Final = {ABSENT: 2, SPOILED: 1}
_LONGEST: Final = 64


class Absence(Part):
    """What is held against a node.

    Attributes:
        reason: `ABSENT` or `SPOILED`.
        times: How often in a row.
        until: The last round that it is left out of; an earlier one than the next where it is not.
    """

    reason: str
    times: Count
    until: Count


class _File(Document):
    """``absences.json``.

    Attributes:
        rounds: The last round that is counted in, by reason.
        nodes: What is held against nodes, by their names.
    """

    format: str = "pruneseal-absences"
    version: str = "1.0"
    rounds: Table[Count] = Field(default_factory=dict)
    nodes: Table[Absence] = Field(default_factory=dict)


def read_absences(folder: Path) -> Mapping[str, Absence]:
    """What is held against the nodes of a run, by their names.

    Raises:
        CheckpointError: The file is damaged.
    """
    return _read(folder).nodes


def _read(folder: Path) -> _File:
    try:
        return _File.read(folder / ABSENCES_FILE)
    except FileNotFoundError:
        return _File()
    except CheckpointError as error:
        raise CheckpointError(f"{error} (It may be removed: all nodes are asked again then.)") from error


class Absences:
    """Counts them.

    Args:
        folder: The run's folder.
        roster: The names of the nodes.

    Raises:
        CheckpointError: The file is damaged.
    """

    def __init__(self, folder: Path, roster: Roster) -> None:
        self._folder, self._roster, self._file = folder, roster, _read(folder)

    def left_out(self, round_: int, reason: str) -> Nodes:
        """Who is left out of a round for this reason."""
        out = {name for name, one in self._file.nodes.items() if one.reason == reason and one.until >= round_}
        return frozenset(number for number, node in self._roster.nodes.items() if node.name in out)

    def summed(self, round_: int, invited: Nodes, inside: Nodes) -> Mapping[str, Absence]:
        """Count in, once, who is in the sums of a round, whatever these are.

        Returns:
            Who is left out for it, by name.

        Raises:
            StorageError: The disk does not take it; nothing was counted.
        """
        return self._count(round_, ABSENT, inside, invited - inside)

    def judged(self, round_: int, good: Nodes, spoiled: Nodes) -> Mapping[str, Absence]:
        """Count in, once, who is in good sums of a round, and whose sum was none; as in :meth:`summed`."""
        return self._count(round_, SPOILED, good, spoiled)

    def _count(self, round_: int, reason: str, forgiven: Nodes, held: Nodes) -> Mapping[str, Absence]:
        if round_ <= self._file.rounds.get(reason, 0):
            return {}
        names = {number: node.name for number, node in self._roster.nodes.items()}
        before, news = self._file.nodes, dict[str, Absence]()
        kept = {name: one for name, one in before.items() if one.reason != reason}
        forgotten = {names[node] for node in forgiven & names.keys()}
        kept |= {name: one for name, one in before.items() if one.reason == reason and name not in forgotten}
        for node in sorted(held & names.keys()):
            name = names[node]
            times = before[name].times + 1 if name in before and before[name].reason == reason else 1
            rounds = min(_LONGEST, 1 << (times - _PATIENCE[reason])) if times >= _PATIENCE[reason] else 0
            kept[name] = Absence(reason=reason, times=times, until=round_ + rounds)
            if rounds:
                news[name] = kept[name]
        try:
            (file := _File(rounds={**self._file.rounds, reason: round_}, nodes=kept)).write(
                self._folder / ABSENCES_FILE
            )
        except OSError as error:
            raise StorageError(
                f"{self._folder / ABSENCES_FILE} cannot be written: {error.strerror}. Free space or mend the disk, "
                "then resume the run."
            ) from error
        self._file = file
        return news


def told(round_: int, news: Mapping[str, Absence]) -> Iterable[str]:
    """What an operator is told of those who are left out."""
    for reason, why in ((ABSENT, "missing from one sum after the other"), (SPOILED, "one of them spoiled their sum")):
        for until in sorted({one.until for one in news.values() if one.reason == reason}):
            names = ", ".join(name for name, one in news.items() if (one.reason, one.until) == (reason, until))
            rounds = f"round {until}" if until == round_ + 1 else f"rounds {round_ + 1} to {until}"
            yield f"round {round_}: left out of {rounds}: {names} ({why})"
