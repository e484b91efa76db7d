"""From consents to the masks that are left in a sum: of each member in it its own, of each lost one those of its pairs.

The aggregator learns a member's seed where its contribution is in the sum, and a lost member's key where it is not;
of no member both, so no contribution alone is ever bare (Bonawitz et al., CCS 2017, section 4). The masks are expanded
on all cores.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from aggregator.summation import MaskedSum, PartSum
from protocol.attendance import SHARE_BYTES
from protocol.errors import Duplicate, MalformedMessage, PeerMismatch, ShareError
from protocol.lanes import Slots
from protocol.openings import Nodes
from protocol.pairwise import pair_key, self_key, streams
from protocol.parameters import Parameters
from protocol.plan import Plan
from protocol.release import Consent, decode_consent
from protocol.roster import Roster
from protocol.sharing import COMMITMENT_BYTES, SECRET_BYTES, commit, join, threshold
from protocol.terms import support_digest

_NONE: Final = bytes(SECRET_BYTES)


class Recovery:
    """Collects the consents to the release of a sum, or of those of several groups at once.

    Args:
        total: What is released.
        plan: The plan of the run.
        roster: The public keys of its members.
    """

    def __init__(self, total: MaskedSum, plan: Plan, roster: Roster) -> None:
        self._total, self._plan, self._roster = total, plan, roster
        self._digest = total.cohort.digest(total.attempt)
        self._places = {node: place for place, node in enumerate(sorted(total.invited))}
        self._needed = Nodes().union(*(total.cohort.parts[part.group] for part in total.parts))
        self._shares: dict[int, dict[int, bytes]] = {node: {} for node in self._needed}
        self._vouchers: dict[int, tuple[bytes, ...]] = {}
        self.sealed = b""
        """The sealed terms, once somebody has sent them."""

    @property
    def answered(self) -> frozenset[int]:
        """Who has consented."""
        return frozenset(self._vouchers)

    @property
    def complete(self) -> bool:
        """Whether there is enough for the aggregate: shares, the terms, and a voucher that an honest member gave."""
        least = threshold(len(self._total.invited), self._plan.colluders)
        agreed = max(Counter(self._vouchers.values()).values(), default=0) > self._plan.colluders
        enough = all(len(shares) >= least for shares in self._shares.values())
        return bool(self.sealed) and enough and (agreed or self.answered == self._total.nodes)

    def admit(self, node: int, data: bytes) -> None:
        """Take in the consent that came from where ``node`` is reached.

        Raises:
            MalformedMessage, SignatureRefused: It does not parse, is not signed, or a share was changed.
            PeerMismatch: It answers another release, or is another node's.
            Duplicate: The node has already consented.
        """
        consent = decode_consent(data, self._roster)
        member = self._total.cohort.members[0]
        for field, ours in (
            ("run", member.run),
            ("round", member.round),
            ("attempt", self._total.attempt),
            ("node", node),
            ("members", len(self._total.cohort.members)),
            ("sets", len(self._total.parts)),
            ("cohort", self._digest),
        ):
            theirs = len(consent.vouchers) if field == "sets" else getattr(consent, field)
            if ours != theirs:
                raise PeerMismatch(field, ours, theirs)
        if node in self._vouchers and (self.sealed or not consent.sealed):
            raise Duplicate(node, "consent")
        if consent.sealed and support_digest(consent.sealed) != member.support:
            raise PeerMismatch("support", member.support, support_digest(consent.sealed))
        given = self._given(consent)
        for dealer, share in given.items():
            self._shares[dealer][node] = share
        self._vouchers[node] = consent.vouchers
        self.sealed = self.sealed or consent.sealed

    def _given(self, consent: Consent) -> dict[int, bytes]:
        """The shares of a consent by their dealers, those that it has."""
        given, at = {}, SHARE_BYTES * self._places[consent.node] + SHARE_BYTES - 2 * COMMITMENT_BYTES
        for member, share in zip(self._total.cohort.members, consent.shares, strict=True):
            if share == _NONE or member.node not in self._needed:
                continue
            start = at + COMMITMENT_BYTES * (member.node in self._total.nodes)
            if commit(share, COMMITMENT_BYTES) != self._total.dealt[member.node][start : start + COMMITMENT_BYTES]:
                raise MalformedMessage(f"the share of node {member.node} is not the one that was dealt")
            given[member.node] = share
        return given

    @property
    def vouchers(self) -> tuple[bytes, ...]:
        """What most of those who consented vouch with, for each sum."""
        return Counter(self._vouchers.values()).most_common(1)[0][0]

    def masks(self) -> list[Slots]:
        """What the masks that are left in each sum add up to, u64[slots] below t.

        Raises:
            ShareError: A member has dealt shares that do not give back what it has signed for.
        """
        total, p = self._total, self._plan.parameters
        secrets = {node: join(shares) for node, shares in self._shares.items()}
        for member in total.cohort.members:
            inside = member.node in total.nodes
            if member.node in self._needed and not _fits(
                secrets[member.node], member.seed, member.exchange, inside=inside
            ):
                raise ShareError(member.node)
        return [_masks(total, part, secrets, p) for part in total.parts]


def _masks(total: MaskedSum, part: PartSum, secrets: dict[int, bytes], p: Parameters) -> Slots:
    member, keys, t = total.cohort.members[0], list(_keys(total, part, secrets)), p.plain_modulus
    size, threads = p.slots(member.values, member.votes), min(len(keys), len(os.sched_getaffinity(0)))
    left = np.zeros(size, np.uint64)
    with ThreadPoolExecutor(threads, "pruneseal-mask") as pool:
        for some in pool.map(lambda thread: streams(size, keys[thread::threads], t), range(threads)):
            left = (left + some) % np.uint64(t)
    return left


def _keys(total: MaskedSum, part: PartSum, secrets: dict[int, bytes]) -> Iterator[tuple[bytes, bool]]:
    """Of each key stream that is left in a sum the key, and whether it was subtracted."""
    digest, asked = total.cohort.digest(total.attempt), total.cohort.parts[part.group]
    members = [member for member in total.cohort.members if member.node in asked]
    lost = {m.node: X25519PrivateKey.from_private_bytes(secrets[m.node]) for m in members if m.node not in part.nodes}
    for member in members:
        if member.node in part.nodes:
            yield self_key(secrets[member.node], digest, member.node), False
            public = X25519PublicKey.from_public_bytes(member.exchange)
            for node, key in lost.items():
                yield pair_key(key.exchange(public), digest, (member.node, node)), member.node > node


def _fits(secret: bytes, seed: bytes, exchange: bytes, *, inside: bool) -> bool:
    """Whether a secret is the one that its member has signed for: a seed, or a key."""
    if inside:
        return commit(secret) == seed
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == exchange
