"""The pair save / load of a node's ledger: which sums it has taken part in, durably, before it says so.

Law: whatever a node has answered is in the ledger that the next process of the node reads; a ledger that was damaged or
cut off anywhere is refused, never read in part.

A sum must not be followed by another that tells a member apart (`protocol/openings.py`), be it in another attempt,
after a restart of anybody, or in another run from the same model. So each contribution is kept with the digest of the
state that its training began from, and with what the node has consented to open, for ever. And a round, once left, is
never trained again: rounds of a run, and attempts of a round, only rise.

A node whose ledger is missing in mid-run, damaged or older than the update that waits beside it cannot know what it has
helped to open. It says so, sits out the round that it is asked for (and whatever its waiting update was trained for),
and joins with the next one, which begins from another state.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from edge_client.state import PENDING_FILE
from protocol.call import Call
from protocol.errors import Duplicate, LedgerLost, PeerMismatch, StorageError
from protocol.files import replace_file
from protocol.openings import Memory, Nodes, Opening

_log = logging.getLogger("pruneseal.edge_client")
LEDGER_FILE: Final = "ledger.json"
_FORMAT: Final = "pruneseal-ledger"
_VERSION: Final = 1
_SITS_OUT: Final = 1 << 32
"""Stands for an attempt in a round that the node sits out; no call's attempt is as high."""


@dataclass(frozen=True)
class Sent:
    """A contribution that was sent, or was about to be.

    Attributes:
        run: The run's name, 16 bytes.
        round: The round.
        attempt: The attempt.
        state: The digest of the state that the update was trained from, 32 bytes.
        cohort: The digest of that attempt's cohort, 32 bytes.
        invited: Who was invited to the attempt.
        opened: The sets whose sums the node has consented to open; none as long as it has heard of none.
    """

    run: bytes
    round: int
    attempt: int
    state: bytes
    cohort: bytes
    invited: Nodes
    opened: frozenset[Nodes] = frozenset()

    def is_of(self, call: Call) -> bool:
        """Whether it was sent in this attempt."""
        return (self.run, self.round, self.attempt) == (call.run, call.round, call.attempt)


@dataclass
class Ledger:
    """What one node has taken part in.

    Attributes:
        folder: The node's state folder.
        asked: By run, the last round and attempt that the node has answered, or has sat out.
        given: What it has contributed, in order.
    """

    folder: Path
    asked: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    given: list[Sent] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, call: Call, waiting: Call | None, node: int) -> Self:
        """Read the ledger of a node that is being asked, and refuse what lies behind.

        Args:
            folder: The node's state folder.
            call: What it is asked for.
            waiting: What the update that waits in the folder was trained for, if one does.
            node: Its number.

        Raises:
            LedgerLost, PeerMismatch, Duplicate: As in :meth:`require`.
            StorageError: The ledger cannot be read, or the disk does not take the note that the round is sat out.
        """
        path = folder / LEDGER_FILE
        try:
            ledger, reason = cls._decode(folder, path.read_bytes()), ""
            if waiting and ledger.asked.get(waiting.run, (0, 0)) < (waiting.round, waiting.attempt):
                reason = "is older than the update that waits"
        except FileNotFoundError:
            ledger, reason = cls(folder), "is missing"
            if call.round == 1 and not (folder / PENDING_FILE).exists():
                return ledger  # a new node's first round
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            ledger, reason = cls(folder), f"is damaged ({error})"
        if reason:
            _log.warning("%s %s", path, reason)
            for lost in (waiting, call):
                if lost and lost.round >= ledger.asked.get(lost.run, (0, 0))[0]:
                    ledger.asked[lost.run] = (lost.round, _SITS_OUT)
            ledger.save()
        ledger.require(call, node)
        return ledger

    def require(self, call: Call, node: int) -> None:
        """Refuse a call to what lies behind, or is sat out.

        Args:
            call: What the node is asked for.
            node: Its number.

        Raises:
            LedgerLost: The node sits this round out.
            PeerMismatch: The round is an earlier one of this run.
            Duplicate: The attempt is an earlier one of this round.
        """
        round_, attempt = self.asked.get(call.run, (0, 0))
        if (call.round, attempt) == (round_, _SITS_OUT):
            raise LedgerLost(
                "this node's ledger was lost, so it cannot know what it has helped to open: it sits out round "
                f"{round_} and joins with the next one. Where the others are too few without it, start a new run"
            )
        if call.round < round_:
            raise PeerMismatch("round", f"at least {round_}", call.round)
        if call.round == round_ and call.attempt < attempt:
            raise Duplicate(node, f"answers up to attempt {attempt} of round {round_}")

    def memory(self, call: Call, state: bytes) -> Memory:
        """What the node remembers of other attempts from this state, and of others in this round.

        Two attempts of a round may begin from two states, where the round before has two sums; they differ by little.

        Args:
            call: The attempt that is under way, itself left out.
            state: The digest of its starting state.
        """
        return frozenset(
            Opening(sent.invited, sent.opened)
            for sent in self.given
            if (sent.state == state or (sent.run, sent.round) == (call.run, call.round)) and not sent.is_of(call)
        )

    def give(self, sent: Sent, node: int) -> None:
        """Write down that a contribution is about to be sent. What was contributed once may be again.

        Args:
            sent: What is sent; it has opened nothing yet.
            node: The node's number.

        Raises:
            Duplicate: This attempt was already contributed to for another cohort.
            StorageError: The disk does not take it.
        """
        call = Call(sent.run, sent.round, sent.attempt)
        for other in self.given:
            if other.is_of(call):
                if replace(other, opened=frozenset()) != sent:
                    raise Duplicate(node, f"contribution to attempt {sent.attempt}")
                return
        self.given.append(sent)
        self.asked[sent.run] = (sent.round, sent.attempt)
        self.save()

    def release(self, call: Call, sets: Collection[Nodes], node: int) -> None:
        """Write down that the node is about to consent to open sums. What was consented to once may be again.

        Args:
            call: The attempt, which has been contributed to.
            sets: Whose sums they are; one or more.
            node: The node's number.

        Raises:
            Duplicate: Other sums of this attempt were consented to.
            StorageError: The disk does not take it.
        """
        place = next(i for i, sent in enumerate(self.given) if sent.is_of(call))
        sent = self.given[place]
        if sent.opened and sent.opened != frozenset(sets):
            raise Duplicate(node, f"consent to sums of attempt {call.attempt}")
        if not sent.opened:
            self.given[place] = replace(sent, opened=frozenset(sets))
            self.save()

    def note(self, call: Call) -> None:
        """Write down that a call is about to be answered.

        Raises:
            StorageError: The disk does not take it.
        """
        if self.asked.get(call.run) != (call.round, call.attempt):
            self.asked[call.run] = (call.round, call.attempt)
            self.save()

    def save(self) -> None:
        """Write the ledger durably.

        Raises:
            StorageError: The disk does not take it; the file is as it was.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self.folder / LEDGER_FILE, self._encode(), mode=0o600)
        except OSError as error:
            raise StorageError(f"{self.folder / LEDGER_FILE} cannot be written: {error.strerror}") from error

    def _encode(self) -> bytes:
        body = {
            "asked": {run.hex(): list(last) for run, last in self.asked.items()},
            "given": [
                [s.run.hex(), s.round, s.attempt, s.state.hex(), s.cohort.hex(), sorted(s.invited), _listed(s.opened)]
                for s in self.given
            ],
        }
        text = json.dumps(body, separators=(",", ":"))
        return json.dumps({"format": _FORMAT, "version": _VERSION, "sha256": _sum(text), "body": text}).encode()

    @classmethod
    def _decode(cls, folder: Path, data: bytes) -> Self:
        """Read what :meth:`_encode` wrote; or raise one of the errors that :meth:`open` names."""
        outer = json.loads(data)
        if (outer["format"], outer["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it is not a ledger of version {_VERSION}")
        if outer["sha256"] != _sum(outer["body"]):
            raise ValueError("its check sum differs")
        body: dict[str, Any] = json.loads(outer["body"])
        asked = {bytes.fromhex(run): (int(last[0]), int(last[1])) for run, last in body["asked"].items()}
        given = [
            Sent(
                bytes.fromhex(run),
                int(round_),
                int(attempt),
                bytes.fromhex(state),
                bytes.fromhex(cohort),
                frozenset(map(int, invited)),
                frozenset(frozenset(map(int, one)) for one in opened),
            )
            for run, round_, attempt, state, cohort, invited, opened in body["given"]
        ]
        ledger = cls(folder, asked, given)
        if ledger._encode() != data:
            raise ValueError("it is not written as a ledger is")
        return ledger


def _listed(sets: Iterable[Nodes]) -> list[list[int]]:
    return sorted(sorted(one) for one in sets)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
