"""The federation of `tests/factories.py` in motion: its kits as folders, its clients with data, its rounds played.

Node numbers are neither consecutive nor positions, so nothing can mistake the one for the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aggregator.admission import AttendanceAdmission, ContributionAdmission
from aggregator.summation import CohortSum
from edge_client.client import Client, Reply
from edge_client.keys import BLINDING_FILE, COHORT_FILE, PLAN_FILE, SIGN_FILE, CohortSecret, Kit
from edge_client.settings import NodeSettings
from protocol.bits import Words
from protocol.call import Call
from protocol.ciphertext import Seal, Summer, restore, truncate
from protocol.cohort import Cohort, gather_cohort
from protocol.layout import Vector
from protocol.parameters import Parameters
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.wire import Aggregate, encode_aggregate
from tests import factories

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
        _write(folder / BLINDING_FILE, pem(kit.blinding_key))
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
        self.trained = {node: client.train(FIRST, b"") for node, client in self.clients.items()}

    def cohort(self, *nodes: int) -> bytes:
        """The announcement of these nodes' attendances."""
        return gather_cohort([self.trained[node].payload for node in nodes], self.fed.roster).encode()

    def state(self, node: int) -> Path:
        """The folder of a node's state."""
        return self.folder / str(node) / "state"


def one_client(folder: Path, fed: Federation, plan: Plan, **changes: object) -> Client:
    """The first node, whose kit was provisioned for whatever plan this is."""
    kit = fed.write(NODES[0], folder / "kit")
    (kit / PLAN_FILE).write_text(plan.digest.hex())
    settings = NodeSettings(kit, kit / "state", None, 0, 4, 1)
    return Client(replace(settings, **changes), plan)  # type: ignore[arg-type]


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """A private key as its file holds it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def add_up(plan: Plan, roster: Roster, cohort: Cohort, attempt: int, sent: Mapping[int, bytes]) -> bytes:
    """What the aggregator does with the contributions of a cohort: admit, add, encode."""
    admission, total = ContributionAdmission(cohort, attempt, plan, roster), CohortSum(cohort, attempt, plan)
    for node, data in sent.items():
        total.add(admission.admit(node, data))
    assert total.complete
    aggregate = encode_aggregate(total.aggregate(), plan.parameters)
    total.close()
    return aggregate


def ciphertext_sum(
    parameters: Parameters, parts: Iterable[tuple[Words, tuple[bytes, ...]]], **fields: Any
) -> Aggregate:
    """The bare sum of encrypted slots as an aggregate, in the form that any number of summands takes."""
    machine = Seal(parameters)
    total, count, size = Summer(machine), 0, 0
    for first, seeds in parts:
        total.add(restore(first, parameters.drop_up), seeds)
        count, size = count + 1, first.size
    first_half, second_half = total.halves()
    machine.close()
    head: dict[str, Any] = {
        "run": RUN, "round": 1, "attempt": 1, "clients": count, "values": 1, "votes": 0, "plan": bytes(32),
        "key": bytes(16), "cohort": bytes(32), "support": bytes(32), "sealed": b"",
    }  # fmt: skip
    used = truncate(first_half.ravel()[:size], parameters.drop_down)
    return Aggregate(**{**head, "first": used, "second": second_half, **fields})


@dataclass(frozen=True)
class Played:
    """Everything that one round produced."""

    trained: Mapping[int, Reply]
    cohort: Cohort
    sent: Mapping[int, Reply]
    aggregate: bytes


def play_round(clients: Mapping[int, Client], fed: Federation, round_: int, last: bytes, attempt: int = 1) -> Played:
    """One round between clients and an aggregator, in which nobody is lost."""
    call = Call(RUN, round_, attempt)
    admission = AttendanceAdmission(RUN, round_, attempt, fed.plan, fed.roster)
    trained = {node: client.train(call, last) for node, client in clients.items()}
    assert {admission.admit(answer.payload).node for answer in trained.values()} == set(clients)
    cohort = gather_cohort([answer.payload for answer in trained.values()], fed.roster)
    sent = {node: client.contribute(call, cohort.encode()) for node, client in clients.items()}
    aggregate = add_up(fed.plan, fed.roster, cohort, attempt, {node: answer.payload for node, answer in sent.items()})
    return Played(trained, cohort, sent, aggregate)


def random_vector(seed: int, size: int, scale: float = 1.0) -> Vector:
    """Normal values, float32[size]."""
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
