"""What reads messages, and what stands in them, for the search for hostile bytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.fuzz_reader import MIB, Reader
from edge_client.dealing import deal, take
from protocol.attendance import SHARE_BYTES, attendances, decode_attendance
from protocol.call import Call
from protocol.cohort import decode_cohort
from protocol.describe import describe
from protocol.errors import MalformedMessage
from protocol.frame import SIGNATURE_BYTES
from protocol.openings import decode_memory, decode_nodes, encode_memory, encode_nodes, sets_at
from protocol.release import decode_consent, decode_release
from protocol.support import Support, decode_support, encode_support
from protocol.terms import Terms, decode_terms, encode_terms
from protocol.wire import aggregates, decode_aggregate, decode_contribution
from tests import factories
from tests.protocol import frames

VECTORS: Final = Path(__file__).parents[1] / "tests" / "vectors"
_SIZE: Final = 4096
"""Values of the vector that supports and terms are for; what they take is a multiple of it as well."""
_OF_A_VECTOR: Final = 64 * _SIZE + (1 << 18)


def _vectors(pattern: str, field: str) -> list[bytes]:
    """The bytes that stand in a field of vectors, at any depth."""
    found = [json.loads(path.read_text()) for path in sorted(VECTORS.glob(f"{pattern}.json"))]
    return [bytes.fromhex(text) for one in found for text in _strings(one, field)]


def _strings(value: Any, field: str) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _strings(one, field)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key == field and isinstance(one, str):
                yield one
            else:
                yield from _strings(one, field)


def of_frames() -> Iterator[Reader]:
    """Those of messages, and of what stands in them."""
    roster, parameters, kit = frames.ROSTER, frames.PARAMETERS, frames.KITS[1]
    genuine = (frames.ATTENDANCES, frames.CONTRIBUTIONS, frames.AGGREGATES, frames.RELEASES, frames.CONSENTS)
    every = [*(frame for some in genuine for frame in some), *_vectors("bad_a*", "encoded")]
    support = Support(np.arange(0, _SIZE, 7, dtype=np.int64), _SIZE)
    whole = Support(np.arange(_SIZE, dtype=np.int64), _SIZE)
    supports = [encode_support(one) for one in (support, whole, Support.of(np.arange(_SIZE) % 2 == 0))]
    layout = factories.layout(_SIZE - 100, 100)
    terms = [encode_terms(Terms(one, np.ones(2, np.float32))) for one in (support, whole)]

    def signed(data: bytes) -> bytes:
        body = data[:-SIGNATURE_BYTES]
        return body + kit.sign(body)

    def cohort_signed(data: bytes) -> bytes:
        try:
            _, at = sets_at(data, 0)
            return data[:at] + b"".join(signed(part) for part in attendances(data[at:]))
        except MalformedMessage:
            return data

    yield Reader("describe", every, describe)
    remembering = factories.cohort(frames.KITS, memory=frames.MEMORY).encode()
    cohorts = [frames.COHORT.encode(), frames.DIVIDED.encode(), remembering]
    yield Reader("attendance", frames.ATTENDANCES, lambda data: decode_attendance(data, roster), signed)
    yield Reader("cohort", cohorts, lambda data: decode_cohort(data, roster), cohort_signed)
    yield Reader(
        "contribution",
        frames.CONTRIBUTIONS,
        lambda data: decode_contribution(data, frames.announced_by(1), len(frames.KITS), parameters, roster),
        signed,
        slack=MIB,  # words that are spread out together
    )
    yield Reader("release", frames.RELEASES, decode_release)
    yield Reader("consent", frames.CONSENTS, lambda data: decode_consent(data, roster), signed)
    yield Reader("aggregate", frames.AGGREGATES, lambda data: decode_aggregate(data, parameters), slack=MIB)
    sums = [frames.AGGREGATES[0], b"".join(frames.AGGREGATES), frames.AGGREGATES[1] * 64]
    yield Reader("aggregates", sums, lambda data: list(aggregates(data)))
    memories = [*_vectors("memory", "encoded"), encode_memory(frames.MEMORY)]
    yield Reader("memory", memories, decode_memory)
    yield Reader("invited", [encode_nodes(one) for one in ((), frames.KITS, range(100))], decode_nodes)
    call, members = Call(factories.RUN, 1, 1), frames.COHORT.members
    dealt = [b"".join(dealt_to_the_first().values()), bytes(SHARE_BYTES * len(members))]
    yield Reader("dealt", dealt, lambda data: list(take(data, members, call, kit)))
    yield Reader("support", supports, lambda data: decode_support(data, _SIZE), slack=_OF_A_VECTOR)
    yield Reader("terms", terms, lambda data: decode_terms(data, layout), slack=_OF_A_VECTOR)


def dealt_to_the_first() -> dict[int, bytes]:
    """What each member of the cohort has dealt the first, by its number."""
    call, place = Call(factories.RUN, 1, 1), SHARE_BYTES * sorted(frames.KITS).index(1)
    whole = {n: deal(factories.secrets(n), frozenset(frames.KITS), call, k, 1) for n, k in frames.KITS.items()}
    return {node: dealt[place : place + SHARE_BYTES] for node, dealt in whole.items()}
