"""What several tests need: a federation with real keys made of readable bytes, and frames that were tampered with.

No torch, no randomness: a node's keys are a function of its number, so that everything signed here can stand
in `tests/vectors/`. Each function takes what it needs as an argument and gives the smallest thing that works.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import strategies as st

from aggregator.records import PhaseSeconds, Record
from edge_client.dealing import Secrets
from edge_client.keys import CohortSecret, Kit
from protocol.attendance import Attendance, encode_attendance
from protocol.bits import Words
from protocol.cohort import Cohort, gather_cohort
from protocol.figures import Figures
from protocol.frame import signed
from protocol.layout import Layout, TensorSpec
from protocol.openings import Nodes, nodes_digest
from protocol.parameters import SEED_BYTES, Parameters
from protocol.plan import Plan
from protocol.roster import OPERATOR_PUBLIC_FILE, Node, Roster
from protocol.sharing import commit
from protocol.terms import support_digest
from protocol.wire import Contribution, encode_contribution

RUN: Final = bytes(range(16))
"""The name of every run in the tests."""

SECRET: Final = bytes(range(32))
"""The cohort secret of every federation in the tests."""

OPERATOR: Final = Ed25519PrivateKey.from_private_bytes(b"operator" * 4)
"""The operator's signature key in every test."""

OPERATOR_PUBLIC: Final = OPERATOR.public_key().public_bytes_raw().hex()
"""The content of ``operator.pub``."""

MODEL: Final = bytes(range(0x40, 0x60))
SEALED: Final = b"terms that nobody opens"


def plan(**changes: Any) -> Plan:
    """A plan for five clients at most; ``changes`` are its fields."""
    return replace(Plan(rounds=2, max_cohort=5), **changes)


def layout(*sizes: int) -> Layout:
    """A layout of one-dimensional trainable tensors of these sizes, named ``a``, ``b``, …"""
    return Layout(tuple(TensorSpec(chr(ord("a") + i), (size,), trainable=True) for i, size in enumerate(sizes)))


def sign_key(node: int) -> Ed25519PrivateKey:
    """The signature key that a node has in every test."""
    return Ed25519PrivateKey.from_private_bytes((b"sign" + struct.pack("<I", node)) * 4)


def seal_key(node: int) -> X25519PrivateKey:
    """The key for sealing that a node has in every test."""
    return X25519PrivateKey.from_private_bytes((b"seal" + struct.pack("<I", node)) * 4)


def roster(nodes: Iterable[int]) -> Roster:
    """The roster of these nodes under `SECRET`."""
    entries = {
        node: Node(
            f"node-{node}",
            sign_key(node).public_key().public_bytes_raw(),
            seal_key(node).public_key().public_bytes_raw(),
        )
        for node in nodes
    }
    return Roster(CohortSecret(SECRET).id, entries)


def signed_roster(made: Roster) -> str:
    """The file of a roster, signed by the `OPERATOR`."""
    return made.to_json(OPERATOR.sign(made.to_sign()))


def write_roster(folder: Path, made: Roster) -> Path:
    """Write a signed roster and, beside it, the key that proves it; the roster's file."""
    (folder / OPERATOR_PUBLIC_FILE).write_text(OPERATOR_PUBLIC)
    (folder / "roster.json").write_text(signed_roster(made))
    return folder / "roster.json"


def kits(agreed: Plan, nodes: Iterable[int] = (1, 2, 3)) -> dict[int, Kit]:
    """What each node of a federation was provisioned with, by its number."""
    public = roster(nodes)
    secret = CohortSecret(SECRET)
    return {node: Kit(node, secret, public, agreed.digest, sign_key(node), seal_key(node)) for node in public.nodes}


FIGURES = Figures(loss=5 << 16, clipped=2, correct=20, tested=30, test_loss=-(1 << 40), parameters=3 * 64, kept=100)


def attendance(kit: Kit, **changes: Any) -> Attendance:
    """What a node states when it is ready with 7 values for round 1; ``changes`` are the attendance's fields."""
    made = Attendance(
        run=RUN,
        round=1,
        attempt=1,
        node=kit.node,
        samples=100 + kit.node % 100,
        values=7,
        votes=0,
        plan=kit.plan,
        key=kit.roster.key_id(RUN, 1),
        model=MODEL,
        support=support_digest(SEALED),
        invited=nodes_digest(kit.roster.nodes),
        exchange=secrets(kit.node).public,
        seed=commit(secrets(kit.node).seed),
        dealt=bytes(range(32)),
        figures=FIGURES,
        spoiled=0,
        memory=frozenset(),
    )
    return replace(made, **changes)


def secrets(node: int) -> Secrets:
    """What a node masks its contribution with in every test."""
    return Secrets((struct.pack("<I", node) + b"exch") * 4, (struct.pack("<I", node) + b"seed") * 4)


def attend(kit: Kit, **changes: Any) -> bytes:
    """The same, encoded and signed."""
    body = encode_attendance(attendance(kit, **changes))
    return signed(body, kit.sign(body))


def cohort(members: Mapping[int, Kit], groups: Sequence[Nodes] = (), **changes: Any) -> Cohort:
    """The cohort of these nodes, in these groups; ``changes`` are fields of every attendance."""
    attendances = [attend(kit, **changes) for kit in members.values()]
    return gather_cohort(attendances, next(iter(members.values())).roster, groups)


def contribution(kit: Kit, announced: Cohort, parameters: Parameters, **changes: Any) -> Contribution:
    """What a node sends to a cohort, with residues and seeds that count up instead of ciphertexts."""
    own = next(member for member in announced.members if member.node == kit.node)
    slots, blocks = parameters.slots(own.values, own.votes), parameters.blocks(own.values, own.votes)
    made = Contribution(
        run=own.run,
        round=own.round,
        attempt=1,
        node=own.node,
        values=own.values,
        votes=own.votes,
        plan=own.plan,
        key=own.key,
        cohort=announced.digest(1),
        support=own.support,
        held=(True,) * len(announced.members),
        seeds=dummy_seeds(blocks),
        first=dummy_words(slots, parameters.width_up),
    )
    return replace(made, **changes)


def contribute(kit: Kit, announced: Cohort, parameters: Parameters, **changes: Any) -> bytes:
    """The same, encoded and signed."""
    body = encode_contribution(contribution(kit, announced, parameters, **changes), parameters)
    return signed(body, kit.sign(body))


def record(number: int, **changes: Any) -> Record:
    """What is written down of a round of ten clients; ``changes`` are the record's fields."""
    made = Record(
        round=number,
        cohort=10,
        dropped=0,
        attempts=1,
        refused=0,
        refusals={},
        loss=0.25,
        clipped=3,
        values=1000,
        value_bytes=1900,
        vote_bytes=0,
        uplink_bytes=2048,
        downlink_bytes=4096,
        seconds=PhaseSeconds(train=2.0, contribute=1.0, release=0.5, add=0.25, other=0.0),
    )
    return made.model_copy(update=changes)


def dummy_words(count: int, width: int) -> Words:
    """Words that count up in their highest byte or so: u64[count], each below ``2^width``."""
    return (np.arange(1, count + 1, dtype=np.uint64) << np.uint64(max(width - 8, 0))) % np.uint64(1 << width)


def dummy_seeds(count: int) -> tuple[bytes, ...]:
    """Seeds of ciphertexts that count up byte by byte."""
    return tuple(bytes((start + i) % 256 for i in range(SEED_BYTES)) for start in range(count))


_NUMBERS = st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])


@st.composite
def mutations(draw: st.DrawFn, frames: Sequence[bytes], fields: range) -> bytes:
    """A frame, and one to three things done to it by somebody who knows the format.

    Args:
        draw: Hypothesis's.
        frames: Genuine frames.
        fields: Where a frame holds its numbers; those are written over. What stands before is mostly left alone.
    """
    frame = bytearray(draw(st.sampled_from(frames)))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["flip", "flip", "cut", "insert", "splice", "splice", "number"]))
        last = max(len(frame) - 1, 0)
        at = draw(st.integers(min(fields.start, last), last) | st.integers(len(frame) // 2, last))
        if kind == "flip" and frame:
            frame[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del frame[at : draw(st.sampled_from([at + 1, at + 8, len(frame)]))]
        elif kind == "insert":
            frame[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "splice":
            other = draw(st.sampled_from(frames))
            end = draw(st.integers(at, len(frame)))
            frame[at:end] = other[at:end] if draw(st.booleans()) else other[draw(st.integers(0, len(other))) :]
        elif kind == "number":
            size = draw(st.sampled_from([1, 2, 4]))
            at = draw(st.sampled_from(fields[::4]))
            frame[at : at + size] = struct.pack("<I", draw(_NUMBERS | st.integers(0, 0xFFFF_FFFF)))[:size]
    return bytes(frame)
