"""``fleet.running.verify``: a sum that differs from the clear sum in one integer is noticed."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.admission import ContributionAdmission
from aggregator.recovery import Recovery
from aggregator.summation import CohortSum, MaskedSum, dealt_to
from edge_client.keys import load_kit
from edge_client.state import PENDING_FILE, load_pending, save_pending
from fleet.provisioning.kits import kit_name, provision
from fleet.running.verify import VERIFIED_FILE, Verifier
from protocol.call import Call
from protocol.cohort import gather_cohort
from protocol.errors import CheckpointError, StorageError, VerificationError
from protocol.openings import encode_nodes
from protocol.plan import Plan
from protocol.release import Release, encode_release
from protocol.wire import decode_aggregate, encode_aggregate
from tests.aggregator.stub_grid import LAYOUT, StubClient, small_plan

CALL = Call(bytes(range(16)), 1, 2)
VALUES = 2 * LAYOUT.size  # and votes


@dataclass
class Summed:
    """A local run of four clients, one of whom is not in the cohort, just after the sum of a round."""

    folder: Path
    plan: Plan
    total: MaskedSum
    aggregate: bytes

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.folder, self.folder / "kits", self.plan, LAYOUT)

    def check(self, round_: int = CALL.round) -> None:
        self.verifier.check(round_, self.total, self.aggregate)

    def state(self, node: int) -> Path:
        return self.folder / "kits" / kit_name(node) / "state"

    def tamper(self, node: int, **changes: Any) -> None:
        """Change what waits in a client's folder."""
        save_pending(self.state(node), replace(load_pending(self.state(node)), **changes))

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / VERIFIED_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def summed(tmp_path: Path) -> Summed:
    plan = small_plan()
    provision(tmp_path / "kits", 4, plan)
    clients = [StubClient(load_kit(tmp_path / "kits" / kit_name(node)), plan, votes=True) for node in (1, 2, 3)]
    made = Summed(tmp_path, plan, *add_up(plan, clients))
    for client in clients:
        assert client.pending is not None
        save_pending(made.state(client.kit.node), client.pending)
    return made


def add_up(plan: Plan, clients: Sequence[StubClient]) -> tuple[MaskedSum, bytes]:
    """The sum of those clients, all three messages long, and its aggregate."""
    invited, roster = frozenset(client.kit.node for client in clients), clients[0].kit.roster
    attended = {c.kit.node: c.train(CALL, {"invited": encode_nodes(invited)}) for c in clients}
    cohort = gather_cohort([frames["attendance"] for frames in attended.values()], roster)
    dealt = {node: frames["shares"] for node, frames in attended.items()}
    admission, total = ContributionAdmission(cohort, CALL.attempt, plan, roster), CohortSum(cohort, plan)
    for client in clients:
        node = client.kit.node
        announced = {"cohort": cohort.encode(), "shares": dealt_to(node, cohort, invited, dealt)}
        total.add(admission.admit(node, client.contribute(CALL, announced)["contribution"]))
    masked = total.masked(CALL.attempt, invited, dealt)
    total.close()
    digest = cohort.digest(CALL.attempt)
    release = Release(CALL.run, CALL.round, CALL.attempt, len(cohort.members), digest, True, masked.sets)
    recovery = Recovery(masked, plan, roster)
    for client in clients:
        recovery.admit(client.kit.node, client.release(CALL, {"release": encode_release(release)})["consent"])
    (aggregate,) = masked.aggregates(recovery.masks(), plan, recovery.vouchers, recovery.sealed)
    return masked, encode_aggregate(aggregate, plan.parameters)


def test_a_sum_that_equals_the_clear_sum_is_counted(summed: Summed) -> None:
    summed.check()
    assert summed.lines == [{"round": 1, "clients": 3, "lost": 0, "values": VALUES}]


@pytest.mark.parametrize("node", [1, 2, 3])
@pytest.mark.parametrize("position", [0, 13, LAYOUT.size - 1])
def test_one_integer_that_differs_by_one_is_noticed(summed: Summed, node: int, position: int) -> None:
    pending, grid = load_pending(summed.state(node)), summed.plan.parameters.grid
    cohort = summed.total.cohort
    share = next(member.samples for member in cohort.members if member.node == node) / cohort.samples
    steps = np.clip(pending.values / pending.step, -grid.levels, grid.levels)
    steps[position] += (-1.0 if steps[position] > 0 else 1.0) / share
    summed.tamper(node, values=steps * pending.step)
    with pytest.raises(VerificationError, match=f"round 1: 1 of {VALUES} decrypted integers differ"):
        summed.check()
    assert summed.lines == []


def test_one_vote_that_differs_is_noticed(summed: Summed) -> None:
    votes = load_pending(summed.state(2)).votes.copy()
    votes[5] = not votes[5]
    summed.tamper(2, votes=votes)
    with pytest.raises(VerificationError, match=f"1 of {VALUES}"):
        summed.check()


def test_a_sum_of_fewer_clients_than_it_should_hold_is_noticed(summed: Summed) -> None:
    summed.total = replace(summed.total, parts=(replace(summed.total.parts[0], nodes=frozenset({1, 2})),))
    with pytest.raises(VerificationError):
        summed.check()


def test_an_aggregate_that_was_changed_is_spoiled_as_for_clients_and_counts_for_nothing(summed: Summed) -> None:
    aggregate = decode_aggregate(summed.aggregate, summed.plan.parameters)
    first = aggregate.first.copy()
    first[0] ^= 1 << (summed.plan.parameters.width_down - 1)
    summed.aggregate = encode_aggregate(replace(aggregate, first=first), summed.plan.parameters)
    summed.check()
    assert summed.lines == []


def test_a_client_whose_update_is_gone_cannot_be_verified(summed: Summed) -> None:
    (summed.state(3) / PENDING_FILE).unlink()
    with pytest.raises(CheckpointError):
        summed.check()


def test_a_full_disk_leaves_the_count_as_it_was(summed: Summed, monkeypatch: pytest.MonkeyPatch) -> None:
    summed.check()
    before = (summed.folder / VERIFIED_FILE).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        summed.check()
    assert (summed.folder / VERIFIED_FILE).read_bytes() == before


def test_the_summary_counts_a_round_once_and_the_rounds_with_lost_clients(summed: Summed) -> None:
    summed.check()
    summed.check()
    with (summed.folder / VERIFIED_FILE).open("a") as file:
        file.write(json.dumps({"round": 2, "clients": 4, "lost": 1, "values": 10}) + "\n")
    assert summed.verifier.summary().model_dump() == {
        "equal": True,
        "rounds": 2,
        "rounds_with_lost_clients": 1,
        "values": VALUES + 10,
    }
