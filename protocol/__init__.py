"""What both ends of a round must agree on: arrays in, bytes out, and nothing that could decrypt.

Read `protocol/README.md` for the byte layouts, the laws and the decisions behind them.
"""

from typing import Final

VERSION: Final = 2
"""Version of the wire; it stands in every message and in every plan digest. Files have versions of their own."""

DOMAIN: Final = f"pruneseal/{VERSION} ".encode()
"""What every derivation of a key and every signature of a message begins with: no two versions share any."""
