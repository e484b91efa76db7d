"""The pair encode_terms / decode_terms: what a round's integers mean, as the bytes that travel sealed.

Law: ``decode_terms(encode_terms(x), layout) == x``, and equal bytes mean equal terms.

The terms of a round are the support and one clip per tensor. They are a function of the last global model, so every
client of a cohort computes the same bytes; sealed deterministically (`edge_client/keys.py`), they also seal to the same
bytes, whose digest is the *support digest* of every message. With an aggregate they are the whole state of a run: a
client that joins late or has restarted needs nothing else.
"""

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from protocol.errors import MalformedMessage
from protocol.layout import Layout, Vector
from protocol.support import Support, decode_support, encode_support

_TENSORS = struct.Struct("<I")
DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class Terms:
    """The positions that travel, and the clip of each tensor, float32[tensors]."""

    support: Support
    clips: Vector

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Terms) and self.support == other.support and np.array_equal(self.clips, other.clips)

    def __hash__(self) -> int:
        return hash((self.support, self.clips.tobytes()))


def encode_terms(terms: Terms) -> bytes:
    """The one byte string of these terms: the number of tensors as u32, the clips, the support."""
    clips = terms.clips.astype("<f4")
    return _TENSORS.pack(clips.size) + clips.tobytes() + encode_support(terms.support)


def decode_terms(data: bytes, layout: Layout) -> Terms:
    """Read what :func:`encode_terms` wrote for a model of this layout.

    Raises:
        MalformedMessage: The bytes are not terms of such a model.
    """
    tensors = len(layout.tensors)
    end = _TENSORS.size + 4 * tensors
    if len(data) < end or _TENSORS.unpack_from(data) != (tensors,):
        raise MalformedMessage(f"the terms are not those of a model of {tensors} tensors")
    clips = np.frombuffer(data, "<f4", tensors, _TENSORS.size).astype(np.float32)
    if not (np.isfinite(clips) & (clips > 0)).all():
        raise MalformedMessage("a clip must be finite and positive")
    return Terms(decode_support(data[end:], layout.size), clips)


def support_digest(sealed: bytes) -> bytes:
    """The name of sealed terms in every message of the round, 32 bytes."""
    return hashlib.blake2b(sealed, digest_size=DIGEST_BYTES, person=b"pruneseal terms").digest()
