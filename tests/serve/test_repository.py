"""``serve.repository``: which folders are models, and what a change does."""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.errors import ModelError, UnknownModel
from serve.batcher import Batcher, Batching
from serve.metrics import Metrics
from serve.model import open_model
from serve.repository import Key, Repository, Servable, model_file, scan
from tests.serve.serving import linear, save


def load(key: Key, file: Path) -> Servable:
    """A version, without a trial."""
    metrics = Metrics()
    try:
        model = open_model(file.read_bytes(), threads=1)
    except OSError as error:
        raise ModelError(str(error)) from error
    return Servable(*key, model, Batcher(model.run, Batching(), ThreadPoolExecutor(1), metrics.observer(key)))


def test_a_file_is_one_model_named_after_it(tmp_path: Path) -> None:
    file = save(linear(), tmp_path / "digits.v2.onnx")
    assert scan(file) == {("digits.v2", "1"): file}
    assert model_file(file) == file


def test_a_folder_with_a_model_is_one_model_named_after_it(tmp_path: Path) -> None:
    save(linear(), tmp_path / "digits" / "model.onnx")
    assert scan(tmp_path / "digits") == {("digits", "1"): tmp_path / "digits"}


def test_a_folder_holds_models_and_models_hold_versions(tmp_path: Path) -> None:
    for place in ("plain", "versioned/1", "versioned/2", "versioned/10", "versioned/draft", ".hidden", "versioned/02"):
        save(linear(), tmp_path / place / "model.onnx")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "export.json").write_text("{}")
    (tmp_path / "empty" / "3").mkdir(parents=True)
    (tmp_path / "README.md").write_text("no model")
    assert set(scan(tmp_path)) == {
        ("plain", "1"),
        ("versioned", "1"),
        ("versioned", "2"),
        ("versioned", "10"),
        ("exported", "1"),
    }


@pytest.mark.parametrize("name", ["nothing", "file.txt"])
def test_what_is_no_model_is_told_what_would_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ModelError, match=r"holds no model: give an ONNX file|cannot be read"):
        scan(tmp_path / name)


def test_a_name_that_no_address_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be a model's name"):
        scan(save(linear(), tmp_path / "a b?.onnx"))


def test_export_json_says_which_file_is_served(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps({"recommended": "model.int8.onnx"}))
    assert model_file(tmp_path) == tmp_path / "model.int8.onnx"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "does not say which file"),
        ("[", "does not say which file"),
        ("[" * 100_000, "does not say which file"),
        ('["recommended"]', "does not say which file"),
        ('{"recommended": "../../etc/passwd"}', "not the name of a file beside it"),
        ('{"recommended": "/etc/passwd"}', "not the name of a file beside it"),
        ('{"recommended": ".."}', "not the name of a file beside it"),
        ('{"recommended": 3}', "not the name of a file beside it"),
        (" " * (1 << 20) + "{}", "is larger than"),
    ],
)
def test_export_json_that_says_nothing_usable_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(ModelError, match=told):
        model_file(tmp_path)


def test_the_newest_version_answers_unless_another_is_named(tmp_path: Path) -> None:
    for version in ("9", "10", "2"):
        save(linear(), tmp_path / "m" / version / "model.onnx")
    models = Repository(tmp_path, load, Metrics())
    asyncio.run(models.start())
    assert models.get("m").version == "10"
    assert models.get("m", "2").version == "2"
    assert list(models.versions("m")) == ["2", "9", "10"]
    assert [(one.name, one.version) for one in models] == [("m", "2"), ("m", "9"), ("m", "10")]
    with pytest.raises(UnknownModel, match="served in the versions 2, 9, 10"):
        models.get("m", "3")
    with pytest.raises(UnknownModel, match="served are: m"):
        models.get("n")


def test_a_new_version_is_taken_up_at_the_second_look(tmp_path: Path) -> None:
    save(linear(), tmp_path / "m" / "1" / "model.onnx")
    models = Repository(tmp_path, load, Metrics())

    async def scenario() -> None:
        await models.start()
        save(linear(), tmp_path / "m" / "2" / "model.onnx")
        await models.refresh()
        assert models.get("m").version == "1"
        await models.refresh()
        assert models.get("m").version == "2"

    asyncio.run(scenario())


def test_a_replaced_file_is_loaded_again_and_an_untouched_one_is_not(tmp_path: Path) -> None:
    for name in ("same", "other"):
        save(linear(), tmp_path / name / "model.onnx")
    models = Repository(tmp_path, load, Metrics())

    async def scenario() -> None:
        await models.start()
        same, other = models.get("same"), models.get("other")
        save(linear(seed=5), tmp_path / "new.onnx").replace(tmp_path / "other" / "model.onnx")
        await models.refresh()
        await models.refresh()
        assert models.get("same") is same
        assert models.get("other") is not other

    asyncio.run(scenario())


def test_a_broken_file_is_logged_once_and_the_old_model_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save(linear(), tmp_path / "m" / "model.onnx")
    metrics = Metrics()
    models = Repository(tmp_path, load, metrics)

    async def scenario() -> None:
        await models.start()
        before = models.get("m")
        file.write_bytes(b"not a model")
        for _ in range(4):
            await models.refresh()
        assert models.get("m") is before
        save(linear(seed=3), file)
        for _ in range(2):
            await models.refresh()
        assert models.get("m") is not before

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert [record.message for record in caplog.records].count("a model is not loaded") == 1
    assert b'pruneseal_model_loads_total{model="m",outcome="refused",version="1"} 1.0' in metrics.text()


def test_a_version_whose_files_are_gone_is_dropped_and_a_folder_that_cannot_be_read_is_not(tmp_path: Path) -> None:
    for version in ("1", "2"):
        save(linear(), tmp_path / "root" / "m" / version / "model.onnx")
    models = Repository(tmp_path / "root", load, Metrics())

    async def scenario() -> None:
        await models.start()
        (tmp_path / "root" / "m" / "2" / "model.onnx").unlink()
        for _ in range(2):
            await models.refresh()
        assert models.get("m").version == "1"
        (tmp_path / "root").rename(tmp_path / "away")
        for _ in range(3):
            await models.refresh()
        assert models.get("m").version == "1"

    asyncio.run(scenario())
