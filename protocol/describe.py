"""What anybody can see of a message."""

from typing import Final

from protocol import VERSION
from protocol.attendance import ATTENDANCE_FIELDS, ATTENDANCE_HEAD
from protocol.frame import AGGREGATE, ATTENDANCE, CONSENT, CONTRIBUTION, RELEASE, kind_of, open_frame
from protocol.release import CONSENT_FIELDS, CONSENT_HEAD, RELEASE_FIELDS, RELEASE_HEAD
from protocol.wire import AGGREGATE_FIELDS, AGGREGATE_HEAD, CONTRIBUTION_FIELDS, CONTRIBUTION_HEAD

_HEADS: Final = {
    ATTENDANCE: ("attendance", ATTENDANCE_FIELDS, ATTENDANCE_HEAD),
    CONTRIBUTION: ("contribution", CONTRIBUTION_FIELDS, CONTRIBUTION_HEAD),
    AGGREGATE: ("aggregate", AGGREGATE_FIELDS, AGGREGATE_HEAD),
    RELEASE: ("release", RELEASE_FIELDS, RELEASE_HEAD),
    CONSENT: ("consent", CONSENT_FIELDS, CONSENT_HEAD),
}


def describe(data: bytes) -> dict[str, object]:
    """What anybody can see of a message without a key or a roster: its head and its length.

    Raises:
        MalformedMessage: It is not a message of this protocol version.
    """
    kind = kind_of(data)
    name, names, head = _HEADS[kind]
    fields, _ = open_frame(data, kind, head)
    shown = {key: value.hex() if isinstance(value, bytes) else value for key, value in zip(names, fields, strict=True)}
    return {"kind": name, "version": VERSION, "bytes": len(data), **shown}
