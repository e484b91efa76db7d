"""The pair to_record / from_record: our opaque messages inside Flower's records.

Law: ``from_record(to_record(blobs)) == blobs`` for blobs that are not empty; an empty one is left out.

Every payload travels as an `Array` of our own serialisation type. Flower's built-in aggregation refuses to average such
an array, and our reader refuses any other, so neither end can mistake plaintext for ciphertext. This is the one file of
the protocol that knows Flower; both ends use it.
"""

from collections.abc import Mapping
from typing import Final

from flwr.app import Array, ArrayRecord

from protocol import VERSION
from protocol.errors import MalformedMessage

STYPE: Final = f"pruneseal.v{VERSION}"


def to_record(blobs: Mapping[str, bytes]) -> ArrayRecord:
    """Wrap named byte strings for Flower, all but the empty ones."""
    return ArrayRecord(
        {name: Array(dtype="bytes", shape=(len(blob),), stype=STYPE, data=blob) for name, blob in blobs.items() if blob}
    )


def from_record(record: ArrayRecord) -> dict[str, bytes]:
    """Unwrap what :func:`to_record` made.

    Raises:
        MalformedMessage: An array is not one of ours: plaintext instead of our frame, for example.
    """
    for name, array in record.items():
        if array.stype != STYPE or array.dtype != "bytes" or tuple(array.shape) != (len(array.data),):
            raise MalformedMessage(f"the array {name!r} is {array.stype!r} of {array.dtype!r}, not a {STYPE} frame")
    return {name: array.data for name, array in record.items()}
