"""The node's allow list of Flower app bundles: one that is not on it is refused before anything of it is used.

Whoever controls the SuperLink can send any bundle, and a bundle may hold code. ``bundle.sha256`` in the kit lists those
that this node accepts, one SHA-256 in hex per line. :func:`main` is Flower's `flwr-clientapp` with that check before
the bundle is unpacked; a script of this name that calls it stands first on the PATH of the node's SuperExec.
"""

import hashlib
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Final

from protocol.errors import BundleRefused, ConfigError, KeyFileError, PruneSealError

BUNDLES_FILE: Final = "bundle.sha256"
_HEX_DIGITS = 64
_log = logging.getLogger("pruneseal.edge_client")


def accepted(kit: Path) -> frozenset[str]:
    """The digests of the bundles that the node of this kit accepts.

    Raises:
        KeyFileError: The list is absent or holds something else.
    """
    path = kit / BUNDLES_FILE
    try:
        digests = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} cannot be read: {error}. Without it no bundle is accepted.") from error
    if not digests or any(len(d) != _HEX_DIGITS or set(d) - set("0123456789abcdef") for d in digests):
        raise KeyFileError(f"{path} must hold SHA-256 digests in lower-case hex, one per line")
    return frozenset(digests)


def require_accepted(bundle: bytes, kit: Path) -> None:
    """Check a bundle against the list.

    Raises:
        BundleRefused: It is not on the list.
        KeyFileError: There is no list.
    """
    digest = hashlib.sha256(bundle).hexdigest()
    if digest not in accepted(kit):
        raise BundleRefused(digest)


def main() -> None:
    """Run `flwr-clientapp`; its bundle is checked before it is unpacked.

    Raises:
        ConfigError: ``PRUNESEAL_KIT`` is not set.
    """
    if "PRUNESEAL_KIT" not in os.environ:
        raise ConfigError("set PRUNESEAL_KIT to the folder of this node's keys: the list of its bundles is there")
    import_module("edge_client.app")  # what fails here stays in this node's log; Flower would send its text
    # Not above: whoever only reads the list does without Flower's services and their database.
    from edge_client.flower import run_clientapp  # noqa: PLC0415

    kit = Path(os.environ["PRUNESEAL_KIT"])

    def check(bundle: bytes) -> None:
        try:
            require_accepted(bundle, kit)
        except PruneSealError as error:
            _log.error("%s: %s", type(error).__name__, error)
            raise PermissionError(error.public) from None  # Flower sends this text to the server

    run_clientapp(check)


if __name__ == "__main__":
    main()
