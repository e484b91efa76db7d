"""``edge_client.result``: the final model is left as a checkpoint, and its export is another process's work."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client import client as edge
from edge_client import result
from edge_client.client import Client
from edge_client.learning.network import build_network, insert
from edge_client.result import CHECKPOINT_FILE, EXPORT_LOG, leave
from edge_client.sums import state_after
from protocol import checkpoint
from protocol.call import Call
from protocol.checkpoint import Checkpoint
from protocol.errors import StorageError
from tests.edge_client.federation import RUN, federation, play_round, tiny_plan

ECHO = (sys.executable, "-c", "import sys; print(*sys.argv[1:])")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """The exports that clients start: here they only tell their arguments."""
    exports: list[subprocess.Popen[bytes]] = []

    def noted(folder: Path, made: Checkpoint, model: str) -> "subprocess.Popen[bytes]":
        exports.append(leave(folder, made, model))
        return exports[-1]

    monkeypatch.setattr(result, "EXPORT_COMMAND", ECHO)
    monkeypatch.setattr(edge, "leave", noted)
    return exports


def test_a_client_with_an_output_folder_leaves_the_model_that_it_reports_on(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    plan = tiny_plan(rounds=1)
    fed = federation(plan)
    clients: Mapping[int, Client] = fed.clients(tmp_path / "nodes")
    aggregate = play_round(clients, fed, 1, b"").aggregate
    node, client = next(iter(clients.items()))
    call, out = Call(RUN, 2, 1), tmp_path / "out" / "deep"
    frames = {"aggregate": aggregate, "scores": play_round(clients, fed, 2, aggregate).aggregate}
    without = client.report(call, frames)
    assert started == []
    leaving = Client(replace(client._settings, out=out), plan)
    assert leaving.report(call, frames) == without
    (export,) = started
    assert export.wait(timeout=60) == 0
    arguments = [str(out / CHECKPOINT_FILE), "--out", str(out), "--model", plan.model]
    assert (out / EXPORT_LOG).read_text().split() == arguments

    stored = checkpoint.load(out / CHECKPOINT_FILE)
    network = build_network(plan, (5,), 4, RUN)
    state = state_after(aggregate, RUN, 1, fed.kits[node], plan, network)
    insert(network, state.vector)
    expected = {name: tensor.numpy().tobytes() for name, tensor in network.model.state_dict().items()}
    assert {name: array.tobytes() for name, array in stored.tensors.items()} == expected
    assert stored.metadata["run"] == RUN.hex()
    assert stored.metadata["round"] == "1"
    assert stored.metadata["plan_digest"] == plan.digest.hex()
    assert json.loads(stored.metadata["input_shape"]) == [5]


def test_a_folder_that_cannot_be_written_is_an_error_of_this_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the result cannot be written"):
        leave(tmp_path / "file" / "out", Checkpoint({}, {}), "digits-mlp")
