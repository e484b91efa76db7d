"""``fleet.running.verify``: a sum that differs from the clear sum in one integer is noticed."""

import json
import os
from dataclasses import dataclass, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.admission import ContributionAdmission
from aggregator.summation import CohortSum
from edge_client.keys import load_kit
from edge_client.state import PENDING_FILE, load_pending, save_pending
from fleet.provisioning.kits import kit_name, provision
from fleet.running.verify import VERIFIED_FILE, Verifier
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import CheckpointError, MalformedMessage, StorageError, VerificationError
from protocol.plan import Plan
from protocol.wire import decode_aggregate, encode_aggregate
from tests.aggregator.stub_grid import LAYOUT, StubClient, small_plan

CALL = Call(bytes(range(16)), 1, 2)
VALUES = 2 * LAYOUT.size  # and votes


@dataclass
class Summed:
    """A local run of four clients, one of whom is not in the cohort, just after the sum of a round."""

    folder: Path
    plan: Plan
    cohort: Cohort
    aggregate: bytes

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.folder, self.folder / "kits", self.plan, LAYOUT)

    def check(self, round_: int = CALL.round) -> None:
        self.verifier.check(round_, CALL.attempt, self.cohort, self.aggregate)

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
    roster = provision(tmp_path / "kits", 4, plan)
    clients = [StubClient(load_kit(tmp_path / "kits" / kit_name(node)), plan, votes=True) for node in (1, 2, 3)]
    cohort = gather_cohort([client.train(CALL, b"")[0] for client in clients], roster)
    admission, total = ContributionAdmission(cohort, CALL.attempt, plan, roster), CohortSum(cohort, CALL.attempt, plan)
    made = Summed(tmp_path, plan, cohort, b"")
    for client in clients:
        total.add(admission.admit(client.kit.node, client.contribute(CALL, cohort.encode())[0]))
        assert client.pending is not None
        save_pending(made.state(client.kit.node), client.pending)
    made.aggregate = encode_aggregate(total.aggregate(), plan.parameters)
    total.close()
    return made


def test_a_sum_that_equals_the_clear_sum_is_counted(summed: Summed) -> None:
    summed.check()
    assert summed.lines == [{"round": 1, "clients": 3, "attempt": 2, "values": VALUES}]


@pytest.mark.parametrize("node", [1, 2, 3])
@pytest.mark.parametrize("position", [0, 13, LAYOUT.size - 1])
def test_one_integer_that_differs_by_one_is_noticed(summed: Summed, node: int, position: int) -> None:
    pending, grid = load_pending(summed.state(node)), summed.plan.parameters.grid
    share = next(member.samples for member in summed.cohort.members if member.node == node) / summed.cohort.samples
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


def test_a_sum_of_fewer_clients_than_the_cohort_is_noticed(summed: Summed) -> None:
    extra = replace(summed.cohort.members[2], node=0, samples=1)
    summed.cohort = Cohort((*summed.cohort.members, extra), (*summed.cohort.encoded, b""))
    save_pending(summed.state(0), replace(load_pending(summed.state(3)), values=np.zeros(LAYOUT.size, np.float32)))
    with pytest.raises(VerificationError):
        summed.check()


def test_an_aggregate_that_was_changed_does_not_open(summed: Summed) -> None:
    aggregate = decode_aggregate(summed.aggregate, summed.plan.parameters)
    first = aggregate.first.copy()
    first[0] ^= 1 << (summed.plan.parameters.width_down - 1)
    summed.aggregate = encode_aggregate(replace(aggregate, first=first), summed.plan.parameters)
    with pytest.raises((VerificationError, MalformedMessage)):
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
        file.write(json.dumps({"round": 2, "clients": 4, "attempt": 1, "values": 10}) + "\n")
    assert summed.verifier.summary().model_dump() == {
        "equal": True,
        "rounds": 2,
        "rounds_with_lost_clients": 1,
        "values": VALUES + 10,
    }
