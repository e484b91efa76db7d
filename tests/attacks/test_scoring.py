"""Attack 10: ask a client in mid-run, often, to score and to leave a model."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.client import Client
from protocol.call import Call
from protocol.errors import PeerMismatch
from tests.attacks.hostile import NODES, Hostile, loud_plan
from tests.edge_client.federation import RUN


def test_no_model_is_scored_or_left_before_the_last_round_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = loud_plan(rounds=3)
    hostile, out = Hostile(tmp_path / "nodes", plan), tmp_path / "out"
    client = Client(replace(hostile.clients[5]._settings, out=out), plan)
    left: list[Path] = []
    monkeypatch.setattr("edge_client.client.leave", lambda folder, made, model: left.append(folder))
    last = b""
    for round_ in (1, 2):
        last = hostile.round(Call(RUN, round_, 1), NODES, last)
        before = sorted(path.name for path in hostile.state_folder(5).iterdir())
        for asked in (1, 2, 3, 4, 5, (1 << 32) - 1):
            for _ in range(3):
                with pytest.raises(PeerMismatch, match="round: "):
                    client.report(Call(RUN, asked, 1), {"aggregate": last, "scores": last})
        assert left == []
        assert sorted(path.name for path in hostile.state_folder(5).iterdir()) == before
    last = hostile.round(Call(RUN, 3, 1), NODES, last)
    end = Call(RUN, 4, 1)
    with pytest.raises(PeerMismatch, match="round: "):  # the last round's own sum is none of scores
        client.report(end, {"aggregate": last, "scores": last})
    assert left == []
    frames = {"aggregate": last, "scores": hostile.round(end, NODES, last)}
    assert client.report(end, frames).frames == hostile.clients[3].report(end, frames).frames
    assert left == [out]
