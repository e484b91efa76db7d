"""``protocol.documents``: what is written is read back, what is newer is kept, what is damaged is named."""

import json
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from protocol.documents import MOST_BYTES, Count, Document, Items, Part, Seconds, Table
from protocol.errors import CheckpointError, ConfigError


class Leaf(Part):
    size: float
    note: str | None = None


class Sheet(Document):
    format: str = "sheet"
    version: str = "1.2"
    number: Count
    leaves: Items[Leaf] = ()
    by_name: Table[Leaf] = Field(default_factory=dict)
    spent: Seconds = 0.0
    good: bool = True


class Strict(Sheet):
    refusal = ConfigError


class Nested(Part):
    sheet: Sheet | None


LEAVES = st.builds(Leaf, size=st.floats(allow_nan=False, allow_infinity=False), note=st.none() | st.text())
SHEETS = st.builds(
    Sheet,
    number=st.integers(0, 2**63 - 1),
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
    by_name=st.dictionaries(st.text(), LEAVES, max_size=3),
    spent=st.floats(0, 1e11),
    good=st.booleans(),
)


def sheet(**members: Any) -> bytes:
    return json.dumps({"format": "sheet", "version": "1.2", "number": 1, **members}).encode()


def raw(members: str) -> bytes:
    """A sheet with members that are given as they stand in the file."""
    return b'{"format": "sheet", "version": "1.2", "number": 1, ' + members.encode() + b"}"


def refused(data: bytes, kind: type[Part] = Sheet) -> str:
    with pytest.raises(CheckpointError) as caught:
        kind.parse(data, "dir/sheet.json")
    assert len(str(caught.value)) < 500
    return str(caught.value)


@given(SHEETS)
def test_what_is_written_is_read_back(made: Sheet) -> None:
    for indent in (None, 1):
        assert Sheet.parse(made.to_json(indent), "it") == made


@given(st.binary(max_size=200) | SHEETS.flatmap(lambda s: st.integers(0, 60).map(lambda n: s.to_json()[:-n])))
def test_whatever_is_read_is_a_sheet_or_an_error_of_ours(data: bytes) -> None:
    with suppress(CheckpointError):
        assert Sheet.parse(data, "it").format == "sheet"


def test_a_file_is_written_for_people_and_read_back(tmp_path: Path) -> None:
    made = Sheet(number=3, leaves=(Leaf(size=0.5),))
    made.write(tmp_path / "sheet.json")
    assert (tmp_path / "sheet.json").read_text().startswith('{\n "format": "sheet",\n "version": "1.2",\n')
    assert Sheet.read(tmp_path / "sheet.json") == made


def test_no_attribute_can_be_set_and_none_of_another_type_made() -> None:
    made = Sheet(number=3)
    with pytest.raises(ValidationError, match="frozen"):
        made.number = 4  # type: ignore[misc]
    with pytest.raises(ValidationError, match="valid integer"):
        Sheet(number="3")  # type: ignore[arg-type]


def test_keys_of_a_newer_minor_version_are_kept_at_any_depth_and_written_back() -> None:
    newer = sheet(version="1.9", extra=[1, {"a": None}], leaves=[{"size": 1.0, "more": "m"}])
    made = Sheet.parse(newer, "it").model_copy(update={"number": 2})
    again = json.loads(made.to_json())
    assert (again["version"], again["number"], again["extra"]) == ("1.9", 2, [1, {"a": None}])
    assert again["leaves"][0] == {"size": 1.0, "note": None, "more": "m"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{}", "is damaged: its format is none, not sheet"),
        (b'{"version": "1.2", "number": 1}', "is damaged: its format is none, not sheet"),
        (sheet(format="leaf"), "is damaged: its format is leaf, not sheet"),
        (sheet(format={"a": ["x"] * 1000}), "is damaged: its format is"),
        (b'{"format": "sheet", "number": 1}', "has version none, not 1.x"),
        (sheet(version="2.0"), "has version 2.0, not 1.x: use the PruneSeal that wrote it"),
        (sheet(version=1), "is damaged: 'version': input should be a valid string"),
    ],
)
def test_another_format_or_major_version_is_named(data: bytes, told: str) -> None:
    assert refused(data).startswith(f"dir/sheet.json {told}")


def test_the_version_of_a_document_in_a_document_is_compared_too() -> None:
    whole = b'{"sheet": %s}' % sheet(version="3.0")
    assert "has version 3.0, not 1.x" in refused(whole, Nested)
    assert Nested.parse(b'{"sheet": null}', "it").sheet is None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"format": "sheet", "version": "1.2"}', "'number' is missing"),
        (sheet(leaves=[{"size": 1.0}, {}]), "'leaves.1.size' is missing"),
        (sheet(by_name={"a": {"size": "1"}}), "'by_name.a.size': input should be a valid number"),
        (sheet(by_name={"n" * 9999: {}}), "'by_name.nnn"),
        (sheet(by_name=[]), "'by_name': "),
        (sheet(by_name=3), "'by_name': "),
        (sheet(leaves={}), "'leaves': "),
        (sheet(leaves="ab"), "'leaves': "),
        (sheet(leaves=[1]), "'leaves.0': "),
        (sheet(number=None), "'number': "),
        (sheet(number=True), "'number': "),
        (sheet(number=1.0), "'number': "),
        (sheet(number="1"), "'number': "),
        (sheet(number=-1), "'number': "),
        (sheet(number=2**63), "'number': "),
        (sheet(good=1), "'good': "),
        (sheet(spent=-0.5), "'spent': "),
        (sheet(spent=1e12), "'spent': "),
        (raw('"spent": 1e999'), "'spent': "),
        (raw(f'"spent": {"9" * 400}'), "'spent': "),
        (raw('"spent": NaN'), "it is not JSON"),
        (raw('"spent": -Infinity'), "it is not JSON"),
        (raw('"unknown": NaN'), "it is not JSON"),
        (raw(f'"unknown": {"9" * 5000}'), "it is not JSON"),
        (raw(f'"unknown": {"[" * 5000}{"]" * 5000}'), "it is not JSON"),
        (b"[" * 1_000_000, "it is not JSON"),
        (b"", "it is not JSON"),
        (sheet()[:-1], "it is not JSON"),
        (sheet() + b"x", "it is not JSON"),
        (b"\xff\xfe{}", "it is not JSON"),
        (raw('"unknown": "\\ud800"'), "it is not JSON"),
        (b"[]", "it is no object"),
        (b"null", "it is no object"),
        (b'"text"', "it is no object"),
        (b" " * (MOST_BYTES + 1), f"it is larger than {MOST_BYTES} bytes"),
    ],
)
def test_what_is_damaged_is_named_with_its_file_and_its_key(data: bytes, told: str) -> None:
    assert refused(data).startswith(f"dir/sheet.json is damaged: {told}")


def test_an_error_is_of_the_type_that_the_document_says(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'number' is missing"):
        Strict.parse(b'{"format": "sheet", "version": "1.2"}', "it")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Strict.read(tmp_path)


def test_a_file_that_is_absent_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Sheet.read(tmp_path / "none.json")


def test_no_more_is_read_of_a_file_than_a_document_may_be_long(tmp_path: Path) -> None:
    with (tmp_path / "sheet.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="is larger than"):
        Sheet.read(tmp_path / "sheet.json")


@pytest.mark.parametrize(
    "members",
    [
        '"leaves": [' + "0," * 50_000 + "0]",
        '"by_name": {' + ",".join(f'"{number}": 0' for number in range(50_000)) + "}",
    ],
    ids=["items", "table"],
)
def test_what_is_wrong_everywhere_is_told_of_once_and_takes_no_more_memory_than_what_is_right(members: str) -> None:
    data = raw(members)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"'(leaves|by_name)\.0': input should be"):
            Sheet.parse(data, "it")
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data)
    finally:
        tracemalloc.stop()
