"""The page at ``/``: one file, which may load nothing from elsewhere."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

HTML: Final = files("serve").joinpath("page.html").read_text("utf-8")


def _hashes(tag: str) -> str:
    """The digests of the inline blocks of a kind, as a content security policy names them."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
