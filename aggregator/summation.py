"""Ciphertexts are added up as contributions arrive; memory does not grow with their number."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np

from protocol.attendance import SHARE_BYTES
from protocol.bits import Words, packed_length
from protocol.ciphertext import Seal, Summer, restore, truncate
from protocol.cohort import Cohort, decode_cohort
from protocol.errors import CheckpointError, PeerError
from protocol.lanes import Slots
from protocol.npz import read_arrays
from protocol.openings import Nodes
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SEED_BYTES
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.wire import Aggregate, Contribution


@dataclass(frozen=True, eq=False)
class MaskedSum:
    """A sum that waits to be released, with all that its release takes.

    Attributes:
        attempt: Of which attempt.
        invited: Who was invited to it.
        cohort: Whom it was announced to.
        nodes: Whose contributions are in it.
        dealt: What each member has dealt the invited, by its number.
        halves: Both halves of the ciphertexts, u64[blocks, N] each.
        seeds: The contributions' seeds, ``[block][contribution]``; none where the second half is shorter.
    """

    attempt: int
    invited: Nodes
    cohort: Cohort
    nodes: Nodes
    dealt: Mapping[int, bytes]
    halves: tuple[Words, Words]
    seeds: tuple[tuple[bytes, ...], ...]

    def to_bytes(self) -> bytes:
        """As a file that another process goes on with."""
        buffer = BytesIO()
        members = [member.node for member in self.cohort.members]
        seeds = b"".join(seed for block in self.seeds for seed in block)
        np.savez(
            buffer,
            attempt=np.array([self.attempt], np.int64),
            invited=np.array(sorted(self.invited), np.int64),
            cohort=np.frombuffer(self.cohort.encode(), np.uint8),
            nodes=np.array(sorted(self.nodes), np.int64),
            dealt=np.frombuffer(b"".join(self.dealt[node] for node in members), np.uint8),
            first=self.halves[0],
            second=self.halves[1],
            seeds=np.frombuffer(seeds, np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, roster: Roster) -> Self:
        """Read what :meth:`to_bytes` has written.

        Raises:
            CheckpointError: It is damaged.
        """
        try:
            file = read_arrays(data)
            cohort = decode_cohort(file["cohort"].tobytes(), roster)
            invited, nodes = (frozenset(map(int, file[name])) for name in ("invited", "nodes"))
            dealt, size, seeds = file["dealt"].tobytes(), SHARE_BYTES * len(invited), file["seeds"].tobytes()
            cut = [seeds[i : i + SEED_BYTES] for i in range(0, len(seeds), SEED_BYTES)]
            return cls(
                attempt=int(file["attempt"][0]),
                invited=invited,
                cohort=cohort,
                nodes=nodes,
                dealt={member.node: dealt[i * size : (i + 1) * size] for i, member in enumerate(cohort.members)},
                halves=(file["first"], file["second"]),
                seeds=tuple(tuple(cut[i : i + len(nodes)]) for i in range(0, len(cut), len(nodes))),
            )
        except (PeerError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise CheckpointError(f"the sum that waits to be released is damaged: {error}") from error

    def aggregate(self, masks: Slots, plan: Plan, voucher: bytes, sealed: bytes) -> Aggregate:
        """The sum as a message, without the masks that are left in it.

        Args:
            masks: What they add up to, u64[slots] below t.
            plan: The plan.
            voucher: What the members vouch for the sum with.
            sealed: The sealed terms.
        """
        machine, p, member = Seal(plan.parameters), plan.parameters, self.cohort.members[0]
        try:
            total = Summer(machine, self.halves)
            total.unmask(masks)
            first, second = total.halves()
        finally:
            machine.close()
        weights = self.cohort.weights(plan.max_share)
        return Aggregate(
            run=member.run,
            round=member.round,
            attempt=self.attempt,
            clients=len(self.nodes),
            members=len(self.cohort.members),
            values=member.values,
            votes=member.votes,
            weight=sum(weights[node] for node in self.nodes),
            total=sum(weights.values()),
            plan=member.plan,
            key=member.key,
            cohort=self.cohort.digest(self.attempt),
            support=member.support,
            voucher=voucher,
            first=truncate(np.ravel(first)[: masks.size], p.drop_down),
            second=self.seeds or second,
            sealed=sealed,
        )


def dealt_to(node: int, cohort: Cohort, invited: Nodes, dealt: Mapping[int, bytes]) -> bytes:
    """What the members of a cohort have dealt one of the invited, in the members' order."""
    at = SHARE_BYTES * sorted(invited).index(node)
    return b"".join(dealt[member.node][at : at + SHARE_BYTES] for member in cohort.members)


class CohortSum:
    """A running sum; close it to free SEAL's memory.

    Args:
        cohort: Whose sum.
        plan: The plan of the run.
    """

    def __init__(self, cohort: Cohort, plan: Plan) -> None:
        self._cohort, self._plan = cohort, plan
        # Seeds are kept only while they are shorter than the summed second half that they would replace.
        self._by_seeds = len(cohort.members) * SEED_BYTES < packed_length(DEGREE, COEFFICIENT_BITS)
        self._seal = Seal(plan.parameters)
        self._summer = Summer(self._seal, whole=not self._by_seeds)
        self._seeds: list[tuple[bytes, ...]] = []
        self._nodes: set[int] = set()

    @property
    def nodes(self) -> Nodes:
        """Whose contributions are in it."""
        return frozenset(self._nodes)

    def add(self, contribution: Contribution) -> None:
        """Add one admitted contribution.

        Raises:
            MalformedMessage: A residue is out of range; nothing was added.
        """
        self._summer.add(restore(contribution.first, self._plan.parameters.drop_up), contribution.seeds)
        if self._by_seeds:
            self._seeds.append(contribution.seeds)
        self._nodes.add(contribution.node)

    def masked(self, attempt: int, invited: Nodes, dealt: Mapping[int, bytes]) -> MaskedSum:
        """What has been added up, and what its release takes: the attempt, who was invited and what was dealt."""
        seeds = tuple(zip(*self._seeds, strict=True))
        return MaskedSum(attempt, invited, self._cohort, self.nodes, dealt, self._summer.halves(), seeds)

    def close(self) -> None:
        """Free SEAL's memory."""
        self._seal.close()
