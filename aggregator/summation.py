"""Ciphertexts are added up as contributions arrive; memory does not grow with their number."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Self

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
class PartSum:
    """The sum of one part of a cohort: of a group, or of all.

    Attributes:
        group: The place of the part among those of the cohort.
        nodes: Whose contributions are in it.
        halves: Both halves of the ciphertexts, u64[blocks, N] each.
        seeds: The contributions' seeds, ``[block][contribution]``; none where the second half is shorter.
    """

    group: int
    nodes: Nodes
    halves: tuple[Words, Words]
    seeds: tuple[tuple[bytes, ...], ...]


@dataclass(frozen=True, eq=False)
class MaskedSum:
    """What waits to be released: a sum, or one for each group, with all that the release takes.

    Attributes:
        attempt: Of which attempt.
        invited: Who was invited to it.
        cohort: Whom it was announced to.
        dealt: What each member has dealt the invited, by its number.
        parts: The sums, in the order of their groups.
    """

    attempt: int
    invited: Nodes
    cohort: Cohort
    dealt: Mapping[int, bytes]
    parts: tuple[PartSum, ...]

    @property
    def sets(self) -> tuple[Nodes, ...]:
        """Of each sum, whose contributions are in it."""
        return tuple(part.nodes for part in self.parts)

    @property
    def nodes(self) -> Nodes:
        """Whose contributions are in some sum."""
        return Nodes().union(*self.sets)

    def to_bytes(self) -> bytes:
        """As a file that another process goes on with."""
        buffer = BytesIO()
        members = [member.node for member in self.cohort.members]
        parts: dict[str, Any] = {}
        for i, part in enumerate(self.parts):
            parts[f"nodes-{i}"] = np.array(sorted(part.nodes), np.int64)
            parts[f"first-{i}"], parts[f"second-{i}"] = part.halves
            parts[f"seeds-{i}"] = np.frombuffer(b"".join(seed for block in part.seeds for seed in block), np.uint8)
        np.savez(
            buffer,
            attempt=np.array([self.attempt], np.int64),
            invited=np.array(sorted(self.invited), np.int64),
            cohort=np.frombuffer(self.cohort.encode(), np.uint8),
            dealt=np.frombuffer(b"".join(self.dealt[node] for node in members), np.uint8),
            groups=np.array([part.group for part in self.parts], np.int64),
            **parts,
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
            invited = frozenset(map(int, file["invited"]))
            dealt, size = file["dealt"].tobytes(), SHARE_BYTES * len(invited)
            parts = []
            for i, group in enumerate(file["groups"]):
                nodes, seeds = frozenset(map(int, file[f"nodes-{i}"])), file[f"seeds-{i}"].tobytes()
                cut = [seeds[at : at + SEED_BYTES] for at in range(0, len(seeds), SEED_BYTES)]
                by_block = tuple(tuple(cut[at : at + len(nodes)]) for at in range(0, len(cut), len(nodes)))
                parts.append(PartSum(int(group), nodes, (file[f"first-{i}"], file[f"second-{i}"]), by_block))
            return cls(
                attempt=int(file["attempt"][0]),
                invited=invited,
                cohort=cohort,
                dealt={member.node: dealt[i * size : (i + 1) * size] for i, member in enumerate(cohort.members)},
                parts=tuple(parts),
            )
        except (PeerError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise CheckpointError(f"the sum that waits to be released is damaged: {error}") from error

    def aggregates(
        self, masks: Sequence[Slots], plan: Plan, vouchers: Sequence[bytes], sealed: bytes
    ) -> Iterator[Aggregate]:
        """The sums as messages, without the masks that are left in them.

        Args:
            masks: What these add up to in each, u64[slots] below t.
            plan: The plan.
            vouchers: What the members vouch for each with.
            sealed: The sealed terms.
        """
        for part, left, voucher in zip(self.parts, masks, vouchers, strict=True):
            yield self._aggregate(part, left, plan, voucher, sealed)

    def _aggregate(self, part: PartSum, masks: Slots, plan: Plan, voucher: bytes, sealed: bytes) -> Aggregate:
        machine, p, member = Seal(plan.parameters), plan.parameters, self.cohort.members[0]
        try:
            total = Summer(machine, part.halves)
            total.unmask(masks)
            first, second = total.halves()
        finally:
            machine.close()
        weights = self.cohort.weights(plan.max_share)
        return Aggregate(
            run=member.run,
            round=member.round,
            attempt=self.attempt,
            clients=len(part.nodes),
            members=len(self.cohort.members),
            group=part.group,
            values=member.values,
            votes=member.votes,
            weight=sum(weights[node] for node in part.nodes),
            total=sum(weights.values()),
            plan=member.plan,
            key=member.key,
            cohort=self.cohort.digest(self.attempt),
            support=member.support,
            voucher=voucher,
            first=truncate(np.ravel(first)[: masks.size], p.drop_down),
            second=part.seeds or second,
            sealed=sealed,
        )


def dealt_to(node: int, cohort: Cohort, invited: Nodes, dealt: Mapping[int, bytes]) -> bytes:
    """What the members of a cohort have dealt one of the invited, in the members' order."""
    at = SHARE_BYTES * sorted(invited).index(node)
    return b"".join(dealt[member.node][at : at + SHARE_BYTES] for member in cohort.members)


class CohortSum:
    """A running sum, or one for each group; close it to free SEAL's memory.

    Args:
        cohort: Whose sum.
        plan: The plan of the run.
    """

    def __init__(self, cohort: Cohort, plan: Plan) -> None:
        self._cohort, self._plan = cohort, plan
        # Seeds are kept only while they are shorter than the summed second half that they would replace.
        longest = max(map(len, cohort.parts))
        self._by_seeds = longest * SEED_BYTES < packed_length(DEGREE, COEFFICIENT_BITS)
        self._seal = Seal(plan.parameters)
        self._parts = [_Part(Summer(self._seal, whole=not self._by_seeds)) for _ in cohort.parts]

    @property
    def sets(self) -> tuple[Nodes, ...]:
        """Of each part of the cohort, whose contributions are in its sum."""
        return tuple(frozenset(part.nodes) for part in self._parts)

    @property
    def nodes(self) -> Nodes:
        """Whose contributions are in some sum."""
        return Nodes().union(*self.sets)

    def add(self, contribution: Contribution) -> None:
        """Add one admitted contribution.

        Raises:
            MalformedMessage: A residue is out of range; nothing was added.
        """
        part = self._parts[self._cohort.part_of(contribution.node)]
        part.summer.add(restore(contribution.first, self._plan.parameters.drop_up), contribution.seeds)
        if self._by_seeds:
            part.seeds.append(contribution.seeds)
        part.nodes.add(contribution.node)

    def masked(
        self, attempt: int, invited: Nodes, dealt: Mapping[int, bytes], groups: Collection[int] = (0,)
    ) -> MaskedSum:
        """What has been added up, and what its release takes.

        Args:
            attempt: Of which attempt it is.
            invited: Who was invited to it.
            dealt: What each member has dealt them, by its number.
            groups: The places of the parts whose sums are to be released.
        """
        parts = [
            PartSum(group, frozenset(part.nodes), part.summer.halves(), tuple(zip(*part.seeds, strict=True)))
            for group, part in enumerate(self._parts)
            if group in groups
        ]
        return MaskedSum(attempt, invited, self._cohort, dealt, tuple(parts))

    def close(self) -> None:
        """Free SEAL's memory."""
        self._seal.close()


@dataclass
class _Part:
    """What has been added up of one part of a cohort."""

    summer: Summer
    nodes: set[int] = field(default_factory=set)
    seeds: list[tuple[bytes, ...]] = field(default_factory=list)
