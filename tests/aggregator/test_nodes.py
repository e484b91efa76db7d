"""``aggregator.nodes``: who is on the roster is registered, who is not is unregistered, and nobody else is touched."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from aggregator import flower, nodes
from edge_client.enrollment import NODE_PUBLIC_FILE, write_node_key
from edge_client.keys import load_operator_key
from fleet.provisioning.kits import OPERATOR, provision, signed_roster
from protocol.errors import ConfigError, RosterRefused
from protocol.plan import Plan
from protocol.roster import Roster, load_roster
from tests.waiting import wait_for


@dataclass
class Node:
    node_id: int
    public_key: bytes
    name: str
    status: str = "registered"


@dataclass
class StubControl:
    """The part of the Control API that is used, over a list."""

    nodes_info: list[Node] = field(default_factory=list)
    away: bool = False
    calls: int = 0

    def ListNodes(self, request: Any) -> "StubControl":  # noqa: N802
        self.calls += 1
        if self.away:
            raise httpx.ConnectError("refused")
        return self

    def RegisterNode(self, request: Any) -> None:  # noqa: N802
        self.nodes_info.append(Node(len(self.nodes_info), request.public_key, request.name))

    def UnregisterNode(self, request: Any) -> None:  # noqa: N802
        self.nodes_info[request.node_id].status = "unregistered"

    def close(self) -> None:
        pass

    def admitted(self) -> list[str]:
        return sorted(node.name for node in self.nodes_info if node.status != "unregistered")


@dataclass
class Place:
    roster: Path
    folder: Path

    def drop(self, name: str) -> None:
        whole = load_roster(self.roster)
        left = {number: node for number, node in whole.nodes.items() if node.name != name}
        changed = Roster(whole.cohort_id, left, whole.serial + 1)
        self.roster.write_bytes(signed_roster(changed, load_operator_key(self.roster.parents[1] / OPERATOR)))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    provision(tmp_path / "kits", 3, Plan())
    folder = tmp_path / "nodes"
    folder.mkdir()
    for number in range(3):
        own = tmp_path / f"flower-{number}"
        own.mkdir()
        write_node_key(own)
        (own / NODE_PUBLIC_FILE).rename(folder / f"node-{number}.pub")
    return Place(tmp_path / "kits" / "aggregator" / "roster.json", folder)


def test_everyone_on_the_roster_is_registered_under_its_name_and_once(place: Place) -> None:
    control = StubControl()
    for _ in range(2):
        nodes.equalise(nodes.read_keys(place.roster, place.folder), flower.Control(control))
    assert control.admitted() == ["node-0", "node-1", "node-2"]
    assert len(control.nodes_info) == 3


def test_who_is_gone_from_the_roster_is_unregistered_and_the_others_stay(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    control = StubControl()
    nodes.equalise(nodes.read_keys(place.roster, place.folder), flower.Control(control))
    place.drop("node-1")
    nodes.equalise(nodes.read_keys(place.roster, place.folder), flower.Control(control))
    assert control.admitted() == ["node-0", "node-2"]
    assert "node node-1 is revoked" in caplog.text


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "cannot be read: No such file"), ("rubbish", "not a public key in OpenSSH form")],
)
def test_a_key_that_is_absent_or_none_revokes_nobody(place: Place, content: str | None, text: str) -> None:
    path = place.folder / "node-2.pub"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ConfigError, match=text):
        nodes.read_keys(place.roster, place.folder)


def test_a_key_of_another_kind_is_refused(place: Place) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    key = Ed25519PrivateKey.generate().public_key()
    (place.folder / "node-0.pub").write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    with pytest.raises(ConfigError, match="not an EC key"):
        nodes.read_keys(place.roster, place.folder)


def test_a_roster_that_the_operator_did_not_sign_admits_and_revokes_nobody(place: Place) -> None:
    whole = place.roster.read_text()
    place.roster.write_text(whole.replace('"node-1"', '"node-9"'))
    with pytest.raises(RosterRefused, match="is not signed with the operator's key"):
        nodes.read_keys(place.roster, place.folder)


class Stop(threading.Event):
    """Counts how often the loop has looked whether it is to stop."""

    looks = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.looks += 1
        return super().wait(timeout)


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def kept(place: Place, stop: Stop, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubControl]:
    """The loop, running against a SuperLink that is away at first."""
    control = StubControl(away=True)
    monkeypatch.setattr(nodes, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(flower, "read_superlink_connection", lambda name: name)
    monkeypatch.setattr(flower, "init_http_client_from_connection", lambda connection: control)
    thread = threading.Thread(target=nodes.keep, args=(place.roster, place.folder, "aggregator", stop))
    thread.start()
    yield control
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_the_loop_waits_for_the_superlink_and_follows_the_roster(place: Place, stop: Stop, kept: StubControl) -> None:
    wait_for(lambda: kept.calls > 2)
    kept.away = False
    wait_for(lambda: len(kept.admitted()) == 3)
    asked, looks = kept.calls, stop.looks
    wait_for(lambda: stop.looks > looks + 5, "the loop's next turns")
    assert kept.calls == asked, "an unchanged roster is no reason to ask"
    place.drop("node-0")
    wait_for(lambda: kept.admitted() == ["node-1", "node-2"])


@pytest.mark.usefixtures("put_back")
def test_a_process_without_settings_says_which_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    assert nodes.main({}) == 1
    assert "set PRUNESEAL_ROSTER and PRUNESEAL_NODES" in caplog.text
