"""What both ends of a round must agree on: arrays in, bytes out, and nothing that could decrypt.

Read `protocol/README.md` for the byte layouts, the laws and the decisions behind them.
"""

from typing import Final

VERSION: Final = 1
"""Version of the wire and file formats; it stands in every message and in every plan digest."""
