"""The federation of `tests/factories.py` in motion: its kits as folders, its clients with data, its rounds played.

Node numbers are neither consecutive nor positions, so nothing can mistake the one for the other.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aggregator.admission import AttendanceAdmission, ContributionAdmission
from aggregator.recovery import Recovery
from aggregator.summation import CohortSum, MaskedSum, dealt_to
from edge_client.client import Client, Reply
from edge_client.dealing import Secrets
from edge_client.keys import COHORT_FILE, PLAN_FILE, SEAL_FILE, SIGN_FILE, CohortSecret, Kit
from edge_client.round import dither_of, quantised
from edge_client.settings import NodeSettings
from edge_client.state import load_pending
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.figures import Figures, figures_from_bytes
from protocol.grid import Integers
from protocol.layout import Vector
from protocol.openings import Nodes, encode_nodes, encode_sets
from protocol.plan import Plan
from protocol.release import Release, encode_release
from protocol.roster import Roster
from protocol.wire import aggregates, encode_aggregate
from tests import factories
from tests.edge_client.tampering import spoilt

RUN: Final = factories.RUN
NODES: Final = (2, 3, 5, 8, 13, 21)
TINY_DATA: Final = "tests.edge_client.tiny:data"
TINY_MODEL: Final = "tests.edge_client.tiny:build"


def tiny_plan(**changes: Any) -> Plan:
    """A plan that trains in milliseconds; what is no field of a plan is an option of its method."""
    plan = Plan(
        method="fedavg",
        sparsity=0.75,
        rounds=3,
        max_cohort=6,
        model=TINY_MODEL,
        data=TINY_DATA,
        partition="group",
        epochs=2,
        batch_size=8,
        momentum=0.5,
    )
    own = {name: changes.pop(name) for name in changes.keys() - vars(plan).keys()}
    options = tuple((name.replace("_", "-"), value) for name, value in own.items())
    return replace(plan, options=options, **changes)


FIRST: Final = Call(RUN, 1, 1)
"""The first attempt of the first round."""

PLAN: Final = tiny_plan(method="fedsparsify-global")
"""A tiny plan that prunes."""


@dataclass(frozen=True)
class Federation:
    """The roster of some nodes and what each of them was provisioned with."""

    plan: Plan
    secret: bytes
    roster: Roster
    kits: Mapping[int, Kit]

    def write(self, node: int, folder: Path) -> Path:
        """Write a node's kit as the operator's desk would, and return its folder."""
        folder.mkdir(parents=True, mode=0o700)
        kit = self.kits[node]
        _write(folder / COHORT_FILE, self.secret.hex().encode() + b"\n")
        _write(folder / SIGN_FILE, pem(kit.sign_key))
        _write(folder / SEAL_FILE, pem(kit.seal_key))
        factories.write_roster(folder, self.roster)
        (folder / PLAN_FILE).write_text(kit.plan.hex())
        return folder

    def clients(self, folder: Path) -> dict[int, Client]:
        """One client per node, each with its own folder and its own part of the plan's data."""
        settings = {
            node: NodeSettings(
                self.write(node, folder / str(node)), folder / str(node) / "state", None, i, len(self.kits), 1
            )
            for i, node in enumerate(self.kits)
        }
        return {node: Client(private, self.plan) for node, private in settings.items()}


def federation(
    plan: Plan, nodes: int = 4, secret: bytes = factories.SECRET, numbers: Sequence[int] = NODES
) -> Federation:
    """The first ``nodes`` of these numbers and their keys, under one cohort secret."""
    cohort_secret = CohortSecret(secret)
    roster = replace(factories.roster(numbers[:nodes]), cohort_id=cohort_secret.id)
    made = factories.kits(plan, numbers[:nodes])
    kits = {node: replace(kit, secret=cohort_secret, roster=roster) for node, kit in made.items()}
    return Federation(plan, secret, roster, kits)


class Stage:
    """Six nodes that have all trained for round 1."""

    def __init__(self, folder: Path, plan: Plan = PLAN) -> None:
        self.folder = folder
        self.fed = federation(plan, nodes=6)
        self.clients = self.fed.clients(folder)
        self.trained = {node: client.train(FIRST, invitation(self.clients)) for node, client in self.clients.items()}

    def cohort(self, *nodes: int) -> Cohort:
        """The cohort of these nodes."""
        return cohort_of({node: self.trained[node] for node in nodes}, self.fed.roster)

    def announcement(self, to: int, *nodes: int) -> dict[str, bytes]:
        """What a node is told of the cohort of these."""
        return announcement(self.cohort(*nodes), self.trained, self.clients, to)

    def contribute(self, *nodes: int) -> MaskedSum:
        """Announce the cohort of all who have trained, and add up what these send."""
        sent = {node: self.clients[node].contribute(FIRST, self.announcement(node, *NODES)) for node in nodes}
        frames = {node: answer.frames["contribution"] for node, answer in sent.items()}
        return add_up(self.fed, self.cohort(*NODES), FIRST, self.trained, frames)

    def consents(self, total: MaskedSum) -> dict[int, bytes]:
        """What those who are in a sum answer to its release."""
        release = release_of(total, terms=True)
        return {node: self.clients[node].release(FIRST, release).frames["consent"] for node in sorted(total.nodes)}

    def integers(self, node: int) -> Integers:
        """What a node adds to the sum."""
        pending, plan = load_pending(self.state(node)), self.fed.plan
        dither = dither_of(plan, FIRST, node, pending.values.size)
        return quantised(pending, self.cohort(*NODES), node, plan, dither)[0]

    def state(self, node: int) -> Path:
        """The folder of a node's state."""
        return self.folder / str(node) / "state"


def invitation(nodes: Iterable[int], aggregate: bytes = b"") -> dict[str, bytes]:
    """The frames of a `train` message that invites these nodes."""
    return {"invited": encode_nodes(nodes), "aggregate": aggregate}


def cohort_of(trained: Mapping[int, Reply], roster: Roster, groups: Sequence[Nodes] = ()) -> Cohort:
    """The cohort of those who have trained, in these groups."""
    return gather_cohort([answer.frames["attendance"] for answer in trained.values()], roster, groups)


def announced(attendances: Iterable[bytes], groups: Sequence[Nodes] = ()) -> bytes:
    """A cohort as it would be announced, whatever it is made of."""
    return encode_sets(groups) + b"".join(attendances)


def announcement(cohort: Cohort, trained: Mapping[int, Reply], invited: Iterable[int], to: int) -> dict[str, bytes]:
    """The frames of the `contribute` message to one node."""
    dealt = {node: answer.frames["shares"] for node, answer in trained.items()}
    return {"cohort": cohort.encode(), "shares": dealt_to(to, cohort, frozenset(invited), dealt)}


def release_of(total: MaskedSum, terms: bool = False) -> dict[str, bytes]:
    """The frames of the `release` message of a sum."""
    member, digest = total.cohort.members[0], total.cohort.digest(total.attempt)
    count = len(total.cohort.members)
    made = Release(member.run, member.round, total.attempt, count, digest, terms, total.sets)
    return {"release": encode_release(made)}


def one_client(folder: Path, fed: Federation, plan: Plan, **changes: object) -> Client:
    """The first node, whose kit was provisioned for whatever plan this is."""
    kit = fed.write(NODES[0], folder / "kit")
    (kit / PLAN_FILE).write_text(plan.digest.hex())
    settings = NodeSettings(kit, kit / "state", None, 0, 4, 1)
    return Client(replace(settings, **changes), plan)  # type: ignore[arg-type]


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """A private key as its file holds it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def add_up(
    fed: Federation,
    cohort: Cohort,
    call: Call,
    trained: Mapping[int, Reply],
    sent: Mapping[int, bytes],
    invited: Iterable[int] | None = None,
    groups: Collection[int] | None = None,
) -> MaskedSum:
    """What the aggregator does with the contributions of a cohort.

    Args:
        fed: The federation.
        cohort: The announced cohort.
        call: The attempt.
        trained: The answers to `train`.
        sent: The contributions.
        invited: Who was invited; all by default.
        groups: The places of the groups whose sums are to be released; all by default.
    """
    admission, total = ContributionAdmission(cohort, call.attempt, fed.plan, fed.roster), CohortSum(cohort, fed.plan)
    for node, data in sent.items():
        total.add(admission.admit(node, data))
    dealt = {node: answer.frames["shares"] for node, answer in trained.items()}
    places = range(len(cohort.parts)) if groups is None else groups
    masked = total.masked(call.attempt, frozenset(invited or fed.kits), dealt, places)
    total.close()
    return masked


def open_up(fed: Federation, total: MaskedSum, consents: Mapping[int, bytes]) -> bytes:
    """What the aggregator does with the consents to a release: the aggregate."""
    recovery = Recovery(total, fed.plan, fed.roster)
    for node, data in consents.items():
        recovery.admit(node, data)
    assert recovery.complete
    made = total.aggregates(recovery.masks(), fed.plan, recovery.vouchers, recovery.sealed)
    return b"".join(encode_aggregate(each, fed.plan.parameters) for each in made)


@dataclass(frozen=True)
class Played:
    """Everything that one round produced."""

    trained: Mapping[int, Reply]
    cohort: Cohort
    sent: Mapping[int, Reply]
    total: MaskedSum
    aggregate: bytes
    secrets: Mapping[int, Secrets]


def reports(clients: Mapping[int, Client], fed: Federation, last: bytes) -> dict[int, Reply]:
    """The round of scores after the last one of the plan, and what each client then reports."""
    call = Call(RUN, fed.plan.rounds + 1, 1)
    frames = {"aggregate": last, "scores": play_round(clients, fed, call.round, last).aggregate}
    return {node: client.report(call, frames) for node, client in clients.items()}


def figures_of(reply: Reply) -> Figures:
    """The figures in a report."""
    return figures_from_bytes(reply.frames["figures"])


def play_round(
    clients: Mapping[int, Client],
    fed: Federation,
    round_: int,
    last: bytes,
    attempt: int = 1,
    lost: Mapping[str, Collection[int]] | None = None,
    groups: Sequence[Nodes] = (),
    spoilers: Collection[int] = (),
) -> Played:
    """One round between clients and an aggregator.

    Args:
        clients: Who is invited.
        fed: Their federation.
        round_: Which round.
        last: The last aggregate.
        attempt: Which attempt.
        lost: By the name of a message, who does not answer it, nor any after it.
        groups: How the cohort is divided; not at all by default.
        spoilers: Who contributes random residues.
    """
    call, gone, left = Call(RUN, round_, attempt), dict(lost or {}), dict(clients)

    def here(message: str) -> dict[int, Client]:
        for node in gone.get(message, ()):
            left.pop(node, None)
        return left

    admission = AttendanceAdmission(call, frozenset(clients), len([*aggregates(last)]), fed.plan, fed.roster)
    trained = {node: client.train(call, invitation(clients, last)) for node, client in here("train").items()}
    for node, answer in trained.items():
        assert admission.admit(node, answer.frames["attendance"], answer.frames["shares"]).node == node
    cohort = cohort_of(trained, fed.roster, groups)
    sent = {
        node: client.contribute(call, announcement(cohort, trained, clients, node))
        for node, client in here("contribute").items()
    }
    frames = {node: answer.frames["contribution"] for node, answer in sent.items()}
    frames |= {node: spoilt(frames[node], cohort, fed.kits[node], fed.plan) for node in spoilers}
    total = add_up(fed, cohort, call, trained, frames, clients)
    consents = {
        node: client.release(call, release_of(total, terms=node == min(left))).frames["consent"]
        for node, client in here("release").items()
    }
    secrets = {node: load_pending(clients[node]._settings.state).secrets for node in sent}
    return Played(trained, cohort, sent, total, open_up(fed, total, consents), secrets)


def random_vector(seed: int, size: int, scale: float = 1.0) -> Vector:
    """Normal values, float32[size]."""
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
