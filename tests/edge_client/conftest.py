"""Shared by the tests of the client."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.client import Client
from tests.edge_client.federation import PLAN, Federation, Played, Stage, federation, play_round, tiny_plan
from tests.edge_client.scene import THREE_GROUPS, TWELVE, Scene, scene


@pytest.fixture
def fed() -> Federation:
    """Four nodes and a plan that trains in milliseconds."""
    return federation(tiny_plan())


@pytest.fixture(scope="module")
def four() -> Scene:
    """A round in which four of six nodes are ready."""
    return scene()


@pytest.fixture(scope="module")
def six() -> Scene:
    """A round in which all six nodes are ready."""
    return scene(6)


@pytest.fixture(scope="module")
def divided() -> Scene:
    """A round in which twelve nodes are ready, in three groups."""
    return scene(12, replace(PLAN, max_cohort=12), TWELVE, THREE_GROUPS)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Six clients that have trained on parts of one size."""
    return Stage(tmp_path, replace(PLAN, partition="iid"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Mapping[int, Client], Played]:
    """Four nodes after one whole round."""
    fed = federation(PLAN)
    clients = fed.clients(tmp_path_factory.mktemp("played"))
    return fed, clients, play_round(clients, fed, 1, b"")


@pytest.fixture
def ended(tmp_path: Path) -> tuple[Federation, Mapping[int, Client], Played]:
    """The same as `over`, of which a test may use up the rest."""
    fed = federation(tiny_plan(rounds=1))
    clients = fed.clients(tmp_path / "ended")
    return fed, clients, play_round(clients, fed, 1, b"")


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Mapping[int, Client], Played]:
    """Four nodes after the only round of their plan."""
    fed = federation(tiny_plan(rounds=1))
    clients = fed.clients(tmp_path_factory.mktemp("over"))
    return fed, clients, play_round(clients, fed, 1, b"")
