"""``benchmarks.federation``: in the clear it is the product without the encryption, to the last bit and byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aggregator.journal import Journal
from benchmarks.federation import Clear, encrypted_run
from edge_client.keys import load_kit
from edge_client.sums import state_after
from fleet.provisioning.kits import kit_name
from protocol.errors import ConfigError
from protocol.plan import Plan
from tests.edge_client.federation import tiny_plan

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Clients train in one thread, and sums of floats depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PLANS: dict[str, dict[str, Any]] = {
    "personal weights": {"method": "spafl", "partition": "group"},
    "sparse from the start": {"method": "sparsyfed", "partition": "iid", "powerprop": 1.25},
    "votes": {"method": "fedsparsify-local", "partition": "iid"},
    "filters and statistics": {
        "method": "fedsparsify-global", "granularity": "filter", "model": "tests.edge_client.networks:tabular"
    },
}  # fmt: skip


def plan_of(name: str) -> Plan:
    return tiny_plan(max_cohort=4, rounds=3, **PLANS[name])


@pytest.mark.parametrize("name", PLANS)
def test_the_clear_run_derives_the_encrypted_runs_model_and_counts_its_bytes(tmp_path: Path, name: str) -> None:
    plan = plan_of(name)
    run = encrypted_run(plan, tmp_path / "run", workers=1, fresh=False)
    clear = Clear(plan)
    steps = [clear.round() for _ in range(plan.rounds)]

    journal = Journal(tmp_path / "run", plan)
    kit = load_kit(tmp_path / "run" / "kits" / kit_name(0))
    state = state_after(journal.last().aggregate, journal.run, plan.rounds, kit, plan, clear.network)
    assert clear.state.vector.tobytes() == state.vector.tobytes()
    assert clear.state.mask.tolist() == state.mask.tolist()
    assert state.mask.all() == (name == "personal weights")

    _, lines = run
    assert [step.uplink for step in steps] == [line.uplink_bytes for line in lines]
    assert [step.score.correct / step.score.tested for step in steps] == [line.accuracy for line in lines]
    assert [4 * step.values for step in steps] == [line.values for line in lines]
    assert [step.clipped for step in steps] == [line.clipped for line in lines]
    np.testing.assert_allclose([step.sparsity for step in steps], [line.sparsity or 0.0 for line in lines], atol=1e-12)
    assert [step.vote_bytes > 0 for step in steps] == {
        "votes": [False, True, True], "sparse from the start": [True] * 3
    }.get(name, [False] * 3)  # fmt: skip

    assert encrypted_run(plan, tmp_path / "run", workers=1, fresh=False) == run
    with pytest.raises(ConfigError, match="holds a run of another plan"):
        encrypted_run(tiny_plan(max_cohort=4), tmp_path / "run", workers=1, fresh=False)
