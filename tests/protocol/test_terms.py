"""``protocol.terms``: what a round's integers mean has one encoding."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.errors import MalformedMessage
from protocol.layout import Layout
from protocol.support import Support, encode_support
from protocol.terms import DIGEST_BYTES, Terms, decode_terms, encode_terms, support_digest
from tests.factories import layout, mutations

LAYOUT = layout(2, 60, 1, 37)
CLIPS = st.floats(0, width=32, exclude_min=True, allow_infinity=False)


@st.composite
def terms_of(draw: st.DrawFn, made: Layout) -> Terms:
    mask = draw(hnp.arrays(np.bool_, made.size).filter(np.any))
    return Terms(Support.of(mask), draw(hnp.arrays(np.float32, len(made.tensors), elements=CLIPS)))


@pytest.mark.slow
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_decode_terms_undoes_encode_terms(sizes: list[int], data: st.DataObject) -> None:
    made = layout(*sizes)
    terms = data.draw(terms_of(made))
    encoded = encode_terms(terms)
    back = decode_terms(encoded, made)
    assert back == terms
    assert hash(back) == hash(terms)
    assert back.clips.tobytes() == terms.clips.tobytes()
    assert encode_terms(back) == encoded


SOME = [
    Terms(Support.of(mask), np.array([0.5, 8, 1.25, 2.0**-149], np.float32))
    for mask in (np.ones(100, np.bool_), np.arange(100) % 2 == 1, np.arange(100) % 33 == 0)
]
FRAMES = [encode_terms(terms) for terms in SOME]


@pytest.mark.slow
@given(mutations(FRAMES, fields=range(24)))
@settings(max_examples=400, deadline=None)
def test_mutated_terms_are_refused_or_encode_to_themselves(data: bytes) -> None:
    try:
        terms = decode_terms(data, LAYOUT)
    except MalformedMessage:
        return
    assert encode_terms(terms) == data


@pytest.mark.parametrize("frame", FRAMES)
def test_every_truncation_is_refused(frame: bytes) -> None:
    for length in range(len(frame)):
        with pytest.raises(MalformedMessage):
            decode_terms(frame[:length], LAYOUT)


def test_equal_bytes_mean_equal_terms() -> None:
    assert len(set(FRAMES)) == len(set(SOME)) == 3
    same = Terms(SOME[0].support, SOME[0].clips.copy())
    assert same == SOME[0]
    assert same != Terms(SOME[0].support, SOME[0].clips * 2)
    assert same != SOME[1]
    assert same != "terms"


def test_the_layout_of_the_bytes() -> None:
    terms = Terms(Support(np.array([1, 4], np.int64), 5), np.array([1.0, 2.5], np.float32))
    assert encode_terms(terms) == struct.pack("<Iff", 2, 1.0, 2.5) + encode_support(terms.support)


@pytest.mark.parametrize("clip", [0.0, -0.0, -1.0, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", range(4))
def test_a_clip_that_is_not_finite_and_positive_is_refused(clip: float, place: int) -> None:
    data = bytearray(FRAMES[0])
    data[4 + 4 * place : 8 + 4 * place] = struct.pack("<f", clip)
    with pytest.raises(MalformedMessage, match="finite and positive"):
        decode_terms(bytes(data), LAYOUT)


@pytest.mark.parametrize("sizes", [(2, 60, 38), (2, 60, 1, 37, 1), (100,)])
def test_terms_of_a_model_of_other_tensors_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(MalformedMessage, match=f"a model of {len(sizes)} tensors"):
        decode_terms(FRAMES[0], layout(*sizes))


def test_terms_of_a_smaller_model_are_refused() -> None:
    with pytest.raises(MalformedMessage, match="100 positions does not fit 99 values"):
        decode_terms(FRAMES[0], layout(2, 60, 1, 36))


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_other_sealed_bytes_have_another_name(a: bytes, b: bytes) -> None:
    assert (support_digest(a) == support_digest(b)) == (a == b)
    assert len(support_digest(a)) == DIGEST_BYTES
