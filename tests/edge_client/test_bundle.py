"""``edge_client.bundle``: a bundle that the node's operator has not listed is refused before anything of it is used."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from edge_client import flower
from edge_client.bundle import BUNDLES_FILE, accepted, main, require_accepted
from protocol.errors import BundleRefused, ConfigError, KeyFileError

GOOD, BAD = b"the bundle", b"the bundle, changed"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / BUNDLES_FILE).write_text(hashlib.sha256(GOOD).hexdigest() + "\n" + 64 * "0" + "\n")
    return tmp_path


def test_a_listed_bundle_is_accepted(kit: Path) -> None:
    assert len(accepted(kit)) == 2
    require_accepted(GOOD, kit)


def test_a_bundle_that_differs_by_a_byte_is_refused_and_named(kit: Path) -> None:
    with pytest.raises(BundleRefused, match=hashlib.sha256(BAD).hexdigest()[:16]):
        require_accepted(BAD, kit)


@pytest.mark.parametrize("text", ["", "\n", "deadbeef", "Z" * 64, hashlib.sha256(GOOD).hexdigest().upper()])
def test_a_list_that_is_empty_or_damaged_accepts_nothing(kit: Path, text: str) -> None:
    (kit / BUNDLES_FILE).write_text(text)
    with pytest.raises(KeyFileError, match="must hold SHA-256 digests"):
        require_accepted(GOOD, kit)


def test_without_a_list_nothing_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="Without it no bundle is accepted"):
        require_accepted(GOOD, tmp_path)


def install_through_main(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[bytes]:
    """What Flower would have installed, had it been sent this bundle."""
    installed: list[bytes] = []

    def install(fab: bytes, **_: Any) -> Path:
        installed.append(fab)
        return Path()

    def flwr_clientapp() -> None:
        vars(flower.clientapp)["install_from_fab"](content, skip_prompt=True)

    monkeypatch.setattr(flower.clientapp, "install_from_fab", install)
    monkeypatch.setattr(flower, "flwr_clientapp", flwr_clientapp)
    main()
    return installed


def test_flower_installs_only_what_is_listed_and_says_no_more_than_that(
    kit: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRUNESEAL_KIT", str(kit))
    assert install_through_main(monkeypatch, GOOD) == [GOOD]
    with pytest.raises(PermissionError) as refused:
        install_through_main(monkeypatch, BAD)
    assert str(refused.value) == "this node does not accept the app bundle"
    assert "BundleRefused" in caplog.text


def test_a_missing_list_is_told_to_the_node_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRUNESEAL_KIT", str(tmp_path))
    with pytest.raises(PermissionError) as refused:
        install_through_main(monkeypatch, GOOD)
    assert str(tmp_path) not in str(refused.value)
    assert str(tmp_path) in caplog.text


def test_without_a_kit_there_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNESEAL_KIT", raising=False)
    with pytest.raises(ConfigError, match="PRUNESEAL_KIT"):
        main()
