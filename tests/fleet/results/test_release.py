"""The export folder: what is in it, what is measured, and which checkpoints are refused."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge_client.learning import models
from edge_client.learning.data import load
from export.latency import Latency
from export.parity import infer, open_session
from fleet.results import card
from fleet.results.exported import Export
from fleet.results.release import release, summary_lines
from protocol import checkpoint
from protocol.errors import CheckpointError, ConfigError, DataError, ExportError

pytestmark = pytest.mark.slow
digits = cache(partial(load, "digits"))
METADATA = {
    **{"run": "00", "plan_digest": "11", "round": "3", "method": "fedsparsify-global", "data": "digits"},
    **{"model": "digits-mlp", "input_shape": "[1, 8, 8]", "classes": "10", "sparsity": "0.9"},
    **{"labels": json.dumps([f"digit {n}" for n in range(10)]), "input_scale": "16.0", "input_range": "[0.0, 16.0]"},
}


@cache
def trained() -> dict[str, np.ndarray]:
    """A small network that knows digits, nine tenths of its weights zero."""
    torch.manual_seed(0)
    model = models.build("digits-mlp", (1, 8, 8), 10)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    x, y = torch.tensor(digits().train_x), torch.tensor(digits().train_y)
    masks: list[torch.Tensor] = []
    for step in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
        optimiser.step()
        with torch.no_grad():
            weights = [p for p in model.parameters() if p.dim() == 2]
            if step == 30:
                masks = [w.abs() > w.abs().flatten().kthvalue(int(0.9 * w.numel())).values for w in weights]
            for weight, mask in zip(weights, masks, strict=False):
                weight.mul_(mask)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def saved(
    folder: Path, metadata: Mapping[str, str] | None = None, tensors: Mapping[str, np.ndarray] | None = None
) -> Path:
    path = folder / "model.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(tensors or trained(), {**METADATA, **(metadata or {})}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with calibration."""
    root = tmp_path_factory.mktemp("release")
    release(saved(root), root / "out", digits())
    return root / "out"


def described(folder: Path) -> Export:
    return Export.read(folder / "export.json")


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_folder_holds_two_models_and_three_descriptions(folder: Path) -> None:
    names = ["export.json", "figure.svg", "model.int8.onnx", "model.onnx", "model_card.md"]
    assert sorted(path.name for path in folder.iterdir()) == names
    made = described(folder)
    assert (made.format, made.version) == ("pruneseal-export", "1.0")
    for name, figures in made.files.items():
        content = (folder / name).read_bytes()
        assert figures.bytes == len(content)
        assert figures.sha256 == sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_each_model_says_what_it_takes_and_whence_it_comes(folder: Path, name: str) -> None:
    model, found = onnx.load(folder / name), metadata(folder / name)
    (taken,) = model.graph.input
    assert taken.name == "input"
    assert [axis.dim_param or axis.dim_value for axis in taken.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert json.loads(found["labels"]) == [f"digit {n}" for n in range(10)]
    assert json.loads(found["input_range"]) == [0, 16]
    assert json.loads(found["input_shape"]) == [1, 8, 8]
    assert (found["run"], found["plan_digest"]) == ("00", "11")
    assert found["checkpoint_sha256"] == sha256((folder.parent / "model.safetensors").read_bytes()).hexdigest()
    assert 0 < float(found["multiply_accumulates_left"]) < 0.2
    assert found["sparsity"] == "0.9"


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_a_consumer_sends_raw_pixels(folder: Path, name: str) -> None:
    raw = np.rint(digits().test_x * 16)
    logits = infer(open_session((folder / name).read_bytes()), raw)
    score = float((logits.argmax(axis=1) == digits().test_y).mean())
    assert score == pytest.approx(described(folder).files[name].accuracy, abs=0.003)
    assert score > 0.85


def test_the_recommended_file_is_the_faster_one_that_was_measured(folder: Path) -> None:
    made = described(folder)
    first = made.latency[0].files
    settings = [(row.threads, row.batch) for row in made.latency]
    assert settings[:2] == [(1, 1), (1, 32)]
    assert settings[2:] in ([], [(2, 1), (2, 32)])
    ratio = first["model.onnx"].cpu / first["model.int8.onnx"].cpu
    assert made.recommended == ("model.int8.onnx" if ratio > 1.05 else "model.onnx")


def times(**medians: float) -> dict[str, Latency]:
    return {name: Latency(1, median, median, median, median) for name, median in medians.items()}


@pytest.mark.parametrize(
    ("exact", "int8", "best", "noticed"),
    [
        (0.5, 0.2, "model.int8.onnx", "model.int8.onnx is 5.00 times as fast as the dense file"),
        (0.5, 1.5, "model.onnx", "model.int8.onnx is not faster than model.onnx, so the exact one is recommended"),
        (0.5, 0.49, "model.onnx", "model.int8.onnx is not faster than model.onnx, so the exact one is recommended"),
        (1.5, 1.5, "model.onnx", "model.onnx is slower than the dense file; it is smaller, and nothing else"),
    ],
)
def test_what_is_slower_is_noticed_and_not_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: float, int8: float, best: str, noticed: str
) -> None:
    found = {"dense": 1.0, "model.onnx": exact, "model.int8.onnx": int8}
    monkeypatch.setattr("fleet.results.release.compare", lambda *_, **__: times(**found))
    made = release(saved(tmp_path), tmp_path / "out", digits())
    assert made.recommended == best
    assert noticed in made.reasons
    shown = (tmp_path / "out" / "model_card.md").read_text()
    assert f"Recommended file: **{best}**." in shown
    assert noticed in shown


def test_int8_that_loses_more_than_the_tolerance_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.90, 0.88])
    monkeypatch.setattr("fleet.results.release.accuracy", lambda *_: next(scores))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.int8.onnx").write_bytes(b"of an earlier export")
    made = release(saved(tmp_path), tmp_path / "out", digits(), tolerance=0.01)
    assert made.recommended == "model.onnx"
    assert made.int8_refused == "its accuracy would be 0.8800, and 0.8900 is the least"
    assert not (tmp_path / "out" / "model.int8.onnx").exists()
    assert "There is no int8 file: its accuracy would be 0.8800" in (tmp_path / "out" / "model_card.md").read_text()
    assert any(line.startswith("no model.int8.onnx: its accuracy") for line in summary_lines(tmp_path, made))


def test_a_network_that_cannot_be_quantised_is_still_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise ExportError("the network cannot be quantised: why")

    monkeypatch.setattr("fleet.results.release.export_int8", refuse)
    made = release(saved(tmp_path), tmp_path / "out", digits())
    assert list(made.files) == ["model.onnx"]
    assert made.int8_refused == "the network cannot be quantised: why"


def test_without_data_there_is_no_int8_file_and_no_accuracy(tmp_path: Path) -> None:
    made = release(saved(tmp_path), tmp_path / "out")
    assert made.int8_refused == "no calibration data were given"
    assert made.files["model.onnx"].accuracy is None
    assert "| not measured |" in (tmp_path / "out" / "model_card.md").read_text()


def test_the_card_names_data_method_sparsity_work_sizes_speeds_and_provenance(folder: Path) -> None:
    text = (folder / "model_card.md").read_text()
    made = described(folder)
    for part in (
        *("# digits-mlp on digits", "fedsparsify-global, round 3", "multiply-accumulates left", "digit 9"),
        *("raw values from 0 to 16", "| `model.onnx` |", "| `model.int8.onnx` |", "## Speed", "| checkpoint_sha256 |"),
        *(str(made.machine["cpu"]), f"{made.kept:,} of 17,226 parameters", "![", "figure.svg"),
    ):
        assert part in text


def test_the_figure_is_an_svg_that_names_layers_and_files(folder: Path) -> None:
    root = ET.fromstring((folder / "figure.svg").read_text())  # noqa: S314  # our own file
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"fc1", "fc2", "out", "dense", "model.onnx", "model.int8.onnx"} <= texts


def test_hostile_names_stay_text_in_the_card(folder: Path) -> None:
    made = described(folder)
    made = made.model_copy(update={"labels": ("a|b<script>\n# c", *made.labels[1:])})
    assert "a\\|b&lt;script>\\n# c" in card.write_card(made)


def test_a_figure_of_a_network_that_cannot_be_counted_is_drawn_too(folder: Path) -> None:
    made = described(folder).model_copy(update={"layers": (), "multiply_accumulates_left": None})
    assert b"cannot be counted" in card.draw(made)
    assert "cannot be counted" in card.write_card(made)


def test_an_older_checkpoint_without_labels_and_scale_is_exported_with_numbers(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    old = {key: value for key, value in METADATA.items() if not key.startswith(("labels", "input_r", "input_sc"))}
    checkpoint.save(path, checkpoint.Checkpoint(trained(), old))
    made = release(path, tmp_path / "out")
    assert made.labels == tuple("0123456789")
    assert made.input.range is None
    assert "Div" not in {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}


@pytest.mark.parametrize(
    ("metadata", "error", "text"),
    [
        ({"model": "os:system"}, ConfigError, "code of its own; give it as --model if you trust it"),
        ({"model": "digits"}, ConfigError, "code of its own"),
        ({"model": "lenet5", "input_shape": "[1, 28, 28]"}, CheckpointError, "does not fit the network lenet5"),
        ({"input_shape": "[1, 1000000, 1000000]"}, CheckpointError, "does not fit the network"),
        ({"input_shape": "[1e400]"}, CheckpointError, "does not fit the network"),
        ({"input_shape": "8"}, CheckpointError, "does not fit the network"),
        ({"input_shape": "[[["}, CheckpointError, "does not fit the network"),
        ({"classes": "99999999999999999999"}, CheckpointError, "does not fit the network"),
        ({"labels": '["a"]'}, CheckpointError, "1 labels for 10 classes"),
        ({"labels": "7"}, CheckpointError, "does not say what its inputs"),
        ({"input_range": "[0]"}, CheckpointError, "does not say what its inputs"),
        ({"input_range": "[5, 5]"}, CheckpointError, "input_range"),
        ({"input_scale": "0"}, ExportError, "cannot be scaled"),
    ],
)
def test_a_checkpoint_that_claims_something_else_is_refused(
    tmp_path: Path, metadata: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        release(saved(tmp_path, metadata), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["missing", "double", "reshaped", "added"])
def test_a_checkpoint_with_other_tensors_is_refused(tmp_path: Path, change: str) -> None:
    tensors = dict(trained())
    if change == "missing":
        del tensors["out.bias"]
    elif change == "double":
        tensors["out.bias"] = tensors["out.bias"].astype(np.float64)
    elif change == "reshaped":
        tensors["out.bias"] = tensors["out.bias"].reshape(2, 5)
    else:
        tensors["more"] = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError, match="other names, shapes or types"):
        release(saved(tmp_path, tensors=tensors), tmp_path / "out")


def own_network(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return models.build("digits-mlp", input_shape, classes)


def test_a_network_of_ones_own_is_built_only_when_it_is_named(tmp_path: Path) -> None:
    spec = f"{__name__}:own_network" if "." in __name__ else "tests.fleet.test_release:own_network"
    path = saved(tmp_path, {"model": spec})
    with pytest.raises(ConfigError, match="give it as --model"):
        release(path, tmp_path / "out")
    assert release(path, tmp_path / "out", model=spec).recommended == "model.onnx"


def test_data_of_another_shape_and_a_tolerance_that_is_no_fraction_are_refused(tmp_path: Path) -> None:
    other = replace(digits(), train_x=digits().train_x[:, :, :7], test_x=digits().test_x[:, :, :7])
    with pytest.raises(ConfigError, match="give data like those that it learnt from"):
        release(saved(tmp_path), tmp_path / "out", other)
    with pytest.raises(ConfigError, match="the tolerance must be a fraction"):
        release(saved(tmp_path), tmp_path / "out", digits(), tolerance=1.5)


def test_calibration_with_more_classes_than_the_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in 11 classes"):
        release(saved(tmp_path), tmp_path / "out", replace(digits(), classes=11))
    with pytest.raises(DataError, match="2 labels for 10 classes"):
        replace(digits(), labels=("a", "b"))
