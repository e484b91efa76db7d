"""``protocol.messages``: our frames and what stands around them in Flower's records, written and read in one place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from protocol import VERSION
from protocol.call import Action, Call
from protocol.errors import KeyFileError, MalformedMessage, VersionRefused
from protocol.messages import (
    STYPE,
    call_of,
    from_error,
    from_record,
    from_reply,
    from_request,
    to_error,
    to_record,
    to_reply,
    to_request,
)
from protocol.text import LONGEST


@given(st.dictionaries(st.text(max_size=6), st.binary(min_size=1, max_size=40), max_size=4))
def test_from_record_undoes_to_record(blobs: dict[str, bytes]) -> None:
    assert from_record(to_record(blobs)) == blobs


def test_an_empty_blob_is_left_out() -> None:
    assert from_record(to_record({"sealed": b"", "frame": b"x"})) == {"frame": b"x"}


def test_a_frame_says_that_it_is_ours_and_of_which_version() -> None:
    (array,) = to_record({"frame": b"four"}).values()
    assert (array.stype, array.dtype, tuple(array.shape), array.data) == (
        f"pruneseal.v{VERSION}",
        "bytes",
        (4,),
        b"four",
    )


def test_numpy_cannot_mistake_a_frame_for_an_array() -> None:
    (array,) = to_record({"frame": b"four"}).values()
    with pytest.raises(TypeError):
        array.numpy()


@pytest.mark.parametrize(
    "change",
    [
        {"stype": "numpy.ndarray"},
        {"stype": "pruneseal.v"},
        {"stype": "pruneseal.v1 "},
        {"stype": ""},
        {"dtype": "float32"},
        {"shape": (3,)},
        {"shape": ()},
        {"shape": (4, 1)},
        {"shape": (2, 2)},
    ],
)
def test_an_array_that_is_not_our_frame_is_refused(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"dtype": "bytes", "shape": (4,), "stype": STYPE, "data": b"four"}
    assert from_record(ArrayRecord({"frame": Array(**fields)})) == {"frame": b"four"}
    with pytest.raises(MalformedMessage, match="'frame' is"):
        from_record(ArrayRecord({"frame": Array(**(fields | change))}))


@pytest.mark.parametrize("version", [0, 1, 3])
def test_a_frame_of_another_version_is_refused_with_both_versions_and_what_to_do(version: int) -> None:
    frame = Array(dtype="bytes", shape=(4,), stype=f"pruneseal.v{version}", data=b"four")
    with pytest.raises(
        VersionRefused, match=f"version {version}, and this program speaks version 2: install the same PruneSeal"
    ) as caught:
        from_record(ArrayRecord({"frame": frame}))
    assert caught.value.theirs == version


def test_plaintext_weights_are_refused() -> None:
    record = ArrayRecord([np.zeros((2, 2), np.float32)])
    with pytest.raises(MalformedMessage, match=f"not a {STYPE} frame"):
        from_record(record)


def test_one_foreign_array_spoils_the_record() -> None:
    record = to_record({"frame": b"four"})
    record["weights"] = Array(np.zeros(2, np.float32))
    with pytest.raises(MalformedMessage, match="'weights'"):
        from_record(record)


# --- requests, replies and refusals ----------------------------------------------------------------

RUN = bytes(range(16))


def reply(action: Action) -> RecordDict:
    """A reply with all of its frames."""
    return to_reply(action, dict.fromkeys(action.reply, b"frame"))


numbers = st.integers(1, (1 << 32) - 1)


def framed(names: Sequence[str], least: int = 0) -> st.SearchStrategy[dict[str, bytes]]:
    """Frames of these names, of at least so many bytes."""
    return st.fixed_dictionaries({name: st.binary(min_size=least, max_size=40) for name in names})


@given(st.data(), st.sampled_from(Action), st.binary(min_size=16, max_size=16), numbers, numbers)
def test_from_request_undoes_to_request_and_leaves_empty_frames_out(
    data: st.DataObject, action: Action, run: bytes, round_: int, attempt: int
) -> None:
    call, frames = Call(run, round_, attempt), data.draw(framed(action.request))
    content = to_request(action, call, frames)
    assert from_request(action, content) == (call, {name: frame for name, frame in frames.items() if frame})
    assert call_of(content) == call


@given(st.data(), st.sampled_from(Action))
def test_from_reply_undoes_to_reply(data: st.DataObject, action: Action) -> None:
    frames = data.draw(framed(action.reply, least=1))
    assert from_reply(action, to_reply(action, frames)) == frames


def test_the_records_and_frames_of_a_round_have_their_names() -> None:
    call = Call(RUN, 3, 2)
    asked = {action: to_request(action, call, dict.fromkeys(action.request, b"frame")) for action in Action}
    replies = {action: reply(action) for action in Action}
    assert {str(action): (*content.array_records["frames"],) for action, content in asked.items()} == {
        "train": ("invited", "aggregate"),
        "train.contribute": ("cohort", "shares"),
        "train.release": ("release",),
        "query": ("aggregate", "scores"),
        "query.name": (),
    }
    assert {str(action): (*content.array_records["frames"],) for action, content in replies.items()} == {
        "train": ("attendance", "shares"),
        "train.contribute": ("contribution",),
        "train.release": ("consent",),
        "query": ("model", "figures", "spoiled"),
        "query.name": ("name",),
    }
    for content in asked.values():
        assert dict(content.config_records["call"]) == {"run": RUN, "round": 3, "attempt": 2}
    for content in replies.values():
        assert list(content) == ["frames"], "nothing else leaves a client"


@pytest.mark.parametrize("changes", [{"run": None}, {"run": "text"}, {"round": 1.5}, {"attempt": None}, {"round": 0}])
def test_a_request_that_does_not_say_what_it_is_of_is_refused(changes: dict[str, Any]) -> None:
    content = to_request(Action.TRAIN, Call(RUN, 1, 1), {"invited": b"frame"})
    head: dict[str, Any] = {"run": RUN, "round": 1, "attempt": 1} | changes
    content["call"] = ConfigRecord({key: value for key, value in head.items() if value is not None})
    with pytest.raises(MalformedMessage, match=r"names no run, round and attempt|counted from 1"):
        from_request(Action.TRAIN, content)


def test_the_round_of_a_request_is_read_whatever_it_carries() -> None:
    content = to_request(Action.TRAIN, Call(RUN, 4, 1), {})
    content["frames"] = ArrayRecord([np.zeros(3, np.float32)])
    assert call_of(content) == Call(RUN, 4, 1)
    with pytest.raises(MalformedMessage, match=f"not a {STYPE} frame"):
        from_request(Action.TRAIN, content)


def test_a_request_without_frames_is_a_request() -> None:
    content = to_request(Action.TRAIN, Call(RUN, 1, 1), {})
    assert from_request(Action.TRAIN, content) == (Call(RUN, 1, 1), {})
    del content["frames"]
    assert from_request(Action.TRAIN, content) == (Call(RUN, 1, 1), {})


@pytest.mark.parametrize(("action", "missing"), [(action, name) for action in Action for name in action.reply])
def test_a_reply_without_one_of_its_frames_is_refused(action: Action, missing: str) -> None:
    lacking = to_reply(action, {**dict.fromkeys(action.reply, b"frame"), missing: b""})
    with pytest.raises(MalformedMessage, match=f"the reply holds no {missing}"):
        from_reply(action, lacking)
    with pytest.raises(MalformedMessage, match=f"the reply holds no {action.reply[0]}"):
        from_reply(action, RecordDict())


@pytest.mark.parametrize("action", Action)
def test_a_frame_that_a_message_does_not_carry_is_refused(action: Action) -> None:
    """No node can slip in a frame of another message, such as a second aggregate."""
    asked, replied = to_request(action, Call(RUN, 1, 1), {}), reply(action)
    known = {name for other in Action for name in (*other.request, *other.reply)} | {"more"}
    for content, names in ((asked, action.request), (replied, action.reply)):
        for name in known - set(names):
            content["frames"] = to_record({**dict.fromkeys(names, b"frame"), name: b"frame"})
            with pytest.raises(MalformedMessage, match=f"carries an unknown frame '{name}'"):
                from_request(action, content) if content is asked else from_reply(action, content)


def test_the_name_of_an_unknown_frame_is_bounded_and_cleaned() -> None:
    content = reply(Action.RELEASE)
    content["frames"] = to_record({"consent": b"frame", "\x1b[2J" * 1000: b"frame"})
    with pytest.raises(MalformedMessage, match="an unknown frame") as caught:
        from_reply(Action.RELEASE, content)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_scalars_beside_the_frames_are_not_looked_at() -> None:
    content = reply(Action.CONTRIBUTE)
    content["metrics"] = MetricRecord({"loss": 0.5})
    assert from_reply(Action.CONTRIBUTE, content) == {"contribution": b"frame"}


def test_the_words_of_a_foreign_array_are_bounded_and_cleaned() -> None:
    array = Array(dtype="\x1b[31m" * 1000, shape=(4,), stype="\n" * 1000, data=b"four")
    with pytest.raises(MalformedMessage, match="not a") as caught:
        from_record(ArrayRecord({"name\u202e" * 1000: array}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_the_words_of_an_error_are_bounded_and_cleaned() -> None:
    for read in from_error(Error(2, "\x1b]0;owned\x07\r\n" * 100_000)):
        assert read.isprintable()
        assert len(read) == LONGEST


def test_an_error_carries_its_kind_and_a_reference_and_no_other_text() -> None:
    error = to_error(KeyFileError("/home/operator/secret.key is absent"), "0a1b")
    assert (error.code, error.reason) == (KeyFileError.code, f"{KeyFileError.public} [ref 0a1b]")
    assert from_error(error) == (KeyFileError.public, f"{KeyFileError.public} [ref 0a1b]")


@pytest.mark.parametrize(
    ("error", "read"),
    [(Error(5), "Flower error 5"), (Error(5, ""), "Flower error 5"), (Error(2, "out of memory"), "out of memory")],
)
def test_an_error_of_flowers_own_is_its_reason_or_its_number(error: Error, read: str) -> None:
    assert from_error(error) == (read, read)
