"""Every method in whole encrypted runs, verified: what each of them must come to, and what its metrics tell."""

import pytest

from edge_client.sparsify import METHODS
from tests.e2e.conftest import FinishedRun, finished

pytestmark = pytest.mark.e2e

SHORT = ("--verify", "--clients", "4", "--rounds", "4", "--epochs", "1", "--workers", "1")
VOTING = ("fedsparsify-local", "sparsyfed", "snip")


@pytest.fixture(scope="module", params=[name for name in METHODS if name != "fedsparsify-global"])
def short(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Four rounds of a method; `fedsparsify-global` has the main job."""
    name = str(request.param)
    more = ["--sparsity", "0.9"] if METHODS[name].has_target else []
    if name == "topk":
        more += ["--learning-rate", "0.5"]  # with small steps nothing grows back in four rounds
    return finished(tmp_path_factory.mktemp(name) / "run", "--method", name, *SHORT, *more)


def test_every_sum_is_exact_and_the_target_is_reached(short: FinishedRun) -> None:
    summary = short.summary
    assert summary["verified"]["equal"] is True
    assert summary["verified"]["rounds"] == 4
    if METHODS[summary["method"]].has_target:
        assert 0.9 <= summary["sparsity"] < 0.91
        assert short.metrics[-1]["sparsity"] == summary["sparsity"]


def test_the_metrics_tell_of_masks_votes_and_work(short: FinishedRun) -> None:
    method = short.summary["method"]
    for line in short.metrics:
        assert line["value_bytes"] > 0
        assert line["value_bytes"] + line["vote_bytes"] < line["uplink_bytes"]
        assert set(line["layer_density"]) == {
            f"{layer}.{kind}" for layer in ("fc1", "fc2", "out") for kind in ("bias", "weight")
        }
        assert all(0 <= share <= 1 for share in line["layer_density"].values())
        assert 0 < line["work_left"] <= 1
        assert (line["agreement"] is None) == (line["vote_bytes"] == 0)
        assert line["agreement"] is None or 0 < line["agreement"] <= 1
        assert line["clipped"] >= 0
    voted = sum(line["vote_bytes"] for line in short.metrics)
    assert voted == short.summary["uplink_vote_bytes"]
    assert (voted > 0) == (method in VOTING)
    regrown = sum(line["regrown"] for line in short.metrics)
    assert (regrown > 0) == (method == "topk")
    for heading in ("regrown", "agreement", "votes", "clipped"):
        assert f"<th>{heading}</th>" in (short.out / "report.html").read_text()


def test_votes_cost_at_most_a_quarter_of_the_values_at_ten_clients(local_of_ten: FinishedRun) -> None:
    voted = [line for line in local_of_ten.metrics if line["vote_bytes"]]
    assert len(voted) == 2
    assert all(line["vote_bytes"] <= 0.25 * line["value_bytes"] for line in voted)


@pytest.fixture(scope="module")
def local_of_ten(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    options = ("--clients", "10", "--rounds", "3", "--epochs", "1")
    return finished(tmp_path_factory.mktemp("ten") / "run", "--method", "fedsparsify-local", *options)
