"""The folder of the vectors: what `tests.vectors.regenerate` writes, no more and no less.

The vectors themselves are replayed in `test_vectors_arithmetic.py`, `test_vectors_keys.py`,
`test_vectors_messages.py`, `test_vectors_refused.py` and `test_vectors_recorded.py`.
"""

from pathlib import Path

import pytest

from protocol import errors
from protocol.roster import load_roster
from tests.factories import OPERATOR_PUBLIC, sign_key
from tests.protocol.replaying import FOLDER, roster
from tests.vectors import regenerate


def test_the_roster_is_signed_by_the_operators_key_beside_it_and_by_no_other(tmp_path: Path) -> None:
    (tmp_path / "operator.pub").write_text(OPERATOR_PUBLIC)
    assert load_roster(FOLDER / "roster.json", tmp_path / "operator.pub") == roster()
    (tmp_path / "operator.pub").write_text(sign_key(1).public_key().public_bytes_raw().hex())
    with pytest.raises(errors.RosterRefused):
        load_roster(FOLDER / "roster.json", tmp_path / "operator.pub")


def test_the_vectors_are_what_regenerate_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert regenerate.main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_a_vector_that_differs_is_missing_or_is_foreign_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(regenerate, "FOLDER", tmp_path)
    (tmp_path / "foreign.json").write_text("{}")
    assert regenerate.main([]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *(path.name for path in FOLDER.glob("*.json")),
        "operator.pub",
    }
    assert regenerate.main(["--check"]) == 0
    (tmp_path / "bits.json").write_text("[]\n")
    (tmp_path / "sum_0.json").unlink()
    (tmp_path / "support.json").unlink()
    (tmp_path / "more.json").write_text("{}")
    assert regenerate.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "sum_0.json is missing",
        "support.json is missing",
        "more.json is no vector of this program",
        "bits.json differs",
    ]


def test_the_recorded_sum_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regenerate, "FOLDER", tmp_path)
    (tmp_path / "sum_0.json").write_text("recorded")
    assert regenerate.main([]) == 0
    assert (tmp_path / "sum_0.json").read_text() == "recorded"


def test_every_file_has_a_line_in_the_readme() -> None:
    text = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.json"):
        name = path.stem if not path.stem.startswith("bad_") else f"bad_{path.stem.split('_')[1]}_*"
        assert f"`{name}`" in text, path.name
