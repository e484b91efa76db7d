"""Attack 7: a client is lost for ever after the announcement, and the aggregator is killed before it asks the others.

Nobody is malicious. An aggregator that did not know any more what it has asked for would ask for something else, which
clients refuse, for ever.
"""

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from aggregator.journal import Journal
from aggregator.rounds import Run
from edge_client.client import Client
from edge_client.keys import Kit
from edge_client.learning.network import build_network
from edge_client.state import load_pending
from protocol.call import Call
from protocol.files import replace_file
from protocol.plan import Plan
from tests.aggregator.stub_grid import CONTRIBUTE, TRAIN, Frames, StubClient, StubGrid, Watch, silent
from tests.edge_client.federation import RUN, federation, tiny_plan

pytestmark = pytest.mark.slow

NODES = (1, 2, 3, 4, 5, 6, 7, 8, 9)
LOST = 4


class KilledError(BaseException):
    """What no handler of errors catches."""


class RealClient(StubClient):
    """A real client with its kit and state on disk, where the stub of it stands."""

    def __init__(self, kit: Kit, plan: Plan, client: Client, folder: Path) -> None:
        super().__init__(kit, plan, build_network(plan, (5,), 4, RUN).layout)
        self._client, self._folder = client, folder

    def train(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        reply = self._client.train(call, frames)
        self.pending = load_pending(self._folder / "state")
        return dict(reply.frames)

    def contribute(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        reply = self._client.contribute(call, frames)
        self.pending = load_pending(self._folder / "state")
        return dict(reply.frames)

    def release(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        reply = self._client.release(call, frames)
        return dict(reply.frames)

    def report(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        reply = self._client.report(call, frames)
        return dict(reply.frames)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", [2, 3, 4])
def test_the_resumed_run_finishes_without_the_lost_one(
    write: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as it writes down who is invited, that a cohort is announced, or the sum that waits for its release."""
    plan = tiny_plan(max_cohort=9, rounds=2, partition="iid")
    fed = federation(plan, nodes=9, numbers=NODES)
    clients = fed.clients(tmp_path / "nodes")
    real = [RealClient(fed.kits[node], plan, clients[node], tmp_path / "nodes" / str(node)) for node in NODES]
    number = count(1)

    def dying(path: Path, data: bytes, mode: int = 0o644) -> None:
        now = next(number)
        if now == write and not after:
            raise KilledError
        replace_file(path, data, mode)
        if now == write:
            raise KilledError

    def run() -> Watch:
        grid = StubGrid(real)
        monkeypatch.setattr("aggregator.replies.time", SimpleNamespace(monotonic=grid.monotonic))
        for kind in (CONTRIBUTE, *((TRAIN,) if broken else ())):
            grid.when(kind, silent, LOST)
        watch = Watch(grid)
        Run(grid, plan, fed.roster, Journal(tmp_path / "run", plan, RUN), watch).run()
        return watch

    for module in ("rounds", "selection"):
        monkeypatch.setattr(f"aggregator.{module}._WAIT_SECONDS", 0.01)
    broken = False
    with monkeypatch.context() as patch:
        for module in ("aggregator.journal", "protocol.documents"):
            patch.setattr(f"{module}.replace_file", dying)
        with pytest.raises(KilledError):
            run()
    broken = True
    watch = run()
    assert (watch.refusals, watch.failures) == ([], [])
    assert [record.round for record in watch.records] == [1, 2]
    assert [total.nodes for _, total, _ in watch.sums[:1]] == [frozenset(NODES) - {LOST}]
