"""The main job: what `make run` promises, read from the files that it writes."""

import json
import stat
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge_client.learning import data
from protocol import checkpoint
from tests.e2e.conftest import FinishedRun, pruneseal

pytestmark = pytest.mark.e2e


def test_the_model_is_sparse_accurate_and_exported_without_loss(main_job: FinishedRun) -> None:
    summary = main_job.summary
    assert summary["sparsity"] >= 0.95
    assert summary["kept"] == 861
    assert summary["parameters"] == 17_226
    assert summary["accuracy"] >= 0.90
    assert summary["onnx_accuracy"] == summary["accuracy"]
    assert summary["onnx_max_abs_diff"] < 1e-4


def test_every_round_was_verified_against_the_clear_sum(main_job: FinishedRun) -> None:
    assert main_job.summary["verified"]["equal"] is True
    assert main_job.summary["verified"]["rounds"] == 40
    assert main_job.summary["verified"]["values"] == sum(line["values"] // line["cohort"] for line in main_job.metrics)


def test_the_uplink_is_a_fraction_of_dense_plaintext(main_job: FinishedRun) -> None:
    summary = main_job.summary
    assert summary["uplink_bytes_per_value"] <= 3.0
    assert summary["uplink_bytes"] <= 0.22 * summary["dense_fedavg_uplink_bytes"]
    assert summary["dense_fedavg_uplink_bytes"] == 40 * 10 * 17_226 * 4
    assert summary["uplink_bytes"] == sum(line["uplink_bytes"] for line in main_job.metrics)


def test_the_parameters_of_encryption_are_those_of_the_design(main_job: FinishedRun) -> None:
    names = ("bits", "ring_degree", "coeff_modulus_bits", "plain_modulus_bits", "security_level")
    assert [main_job.summary[name] for name in names] == [16, 4096, 60, 49, 128]


def test_there_is_one_line_of_metrics_a_round(main_job: FinishedRun) -> None:
    assert [line["round"] for line in main_job.metrics] == list(range(1, 41))
    wanted = {"round", "cohort", "dropped", "accuracy", "loss", "sparsity", "kept", "clipped", "seconds"}
    wanted |= {"uplink_bytes", "downlink_bytes"}
    assert all(wanted <= set(line) for line in main_job.metrics)
    sparsities = [line["sparsity"] for line in main_job.metrics]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == main_job.summary["sparsity"]


def test_the_last_round_s_metrics_are_the_accuracy_of_the_opened_model(main_job: FinishedRun) -> None:
    assert main_job.metrics[-1]["accuracy"] == pytest.approx(main_job.summary["accuracy"], abs=1e-12)


def test_checkpoint_and_onnx_hold_the_same_sparse_model(main_job: FinishedRun) -> None:
    stored = checkpoint.load(main_job.out / "model.safetensors")
    assert sum(int(np.count_nonzero(array)) for array in stored.tensors.values()) <= main_job.summary["kept"]
    digits = data.load("digits")
    session = onnxruntime.InferenceSession(main_job.out / "model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input": digits.raw(digits.test_x)})[0]
    assert (logits.argmax(axis=1) == digits.test_y).mean() == pytest.approx(main_job.summary["accuracy"])


def test_the_report_is_one_file_that_loads_nothing(main_job: FinishedRun) -> None:
    text = (main_job.out / "report.html").read_text()
    assert "sums verified" in text
    assert "<svg" in text
    for loading in ("src=", "<link", "<script", "@import", "url(http"):
        assert loading not in text


def test_no_terminal_gets_plain_lines(main_job: FinishedRun) -> None:
    shown = main_job.printed.splitlines()
    assert shown[0].startswith("round  1/40  cohort 10  accuracy 0.")
    assert "\x1b" not in main_job.printed
    assert "\r" not in main_job.printed


def test_key_files_are_private(main_job: FinishedRun) -> None:
    secrets = [p for p in (main_job.out / "kits").rglob("*") if p.suffix in {".key", ".secret"}]
    assert len(secrets) == 10 * 3 + 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert sorted(p.name for p in (main_job.out / "kits" / "aggregator").iterdir()) == ["operator.pub", "roster.json"]


def test_a_run_is_never_overwritten(main_job: FinishedRun) -> None:
    again = pruneseal("run", "--out", main_job.out)
    assert again.returncode == 1
    assert "already holds a run: resume it with --resume, or choose another --out" in again.stderr


@pytest.mark.parametrize("options", [("--bits", "12"), ("--set", "bits=12")])
def test_resuming_with_other_settings_is_refused(main_job: FinishedRun, options: tuple[str, str]) -> None:
    again = pruneseal("run", "--out", main_job.out, "--resume", *options)
    assert again.returncode == 1
    assert "began with --bits 16, not 12" in again.stderr


def test_export_turns_the_checkpoint_into_the_same_onnx_file(main_job: FinishedRun, tmp_path: Path) -> None:
    done = pruneseal("export", main_job.out / "model.safetensors", "--out", tmp_path, "--calibration", "digits")
    assert done.returncode == 0, done.stderr
    for name in ("model.onnx", "model.int8.onnx"):
        assert (tmp_path / name).read_bytes() == (main_job.out / name).read_bytes()


def test_the_run_ends_with_an_export_folder_whose_figures_are_in_the_summary(main_job: FinishedRun) -> None:
    folder, summary = main_job.out, main_job.summary
    names = {"export.json", "figure.svg", "model.int8.onnx", "model.onnx", "model_card.md"}
    assert names <= {path.name for path in folder.iterdir()}
    assert summary["onnx_bytes"] == (folder / "model.onnx").stat().st_size
    assert summary["int8_onnx_bytes"] == (folder / "model.int8.onnx").stat().st_size
    assert summary["dense_onnx_bytes"] > 9 * summary["onnx_bytes"]
    assert summary["int8_accuracy"] >= summary["onnx_accuracy"] - 0.01
    assert 0 < summary["multiply_accumulates_left"] < 0.06
    assert summary["recommended"] == json.loads((folder / "export.json").read_text())["recommended"]
    assert min(summary["onnx_speed"], summary["int8_speed"]) > 0


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("model.onnx", "opset", None),
        ("model.int8.onnx", "opset", None),
        ("model.safetensors", "kind", "checkpoint"),
        ("rounds/round-000040/aggregate.bin", "kind", "aggregate"),
    ],
)
def test_inspect_describes_what_a_run_writes_without_a_key(
    main_job: FinishedRun, name: str, key: str, value: str | None
) -> None:
    done = pruneseal("inspect", main_job.out / name)
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert key in described
    assert value is None or described[key] == value


def test_every_completed_round_with_lost_clients_is_exact(lossy_run: FinishedRun) -> None:
    verified = lossy_run.summary["verified"]
    assert verified["equal"] is True
    assert verified["rounds"] == 10
    assert verified["rounds_with_lost_clients"] == sum(line["cohort"] < 10 for line in lossy_run.metrics) > 0
    assert sum(line["dropped"] for line in lossy_run.metrics) > 0
    assert all(line["cohort"] >= 6 for line in lossy_run.metrics)
    assert all(line["cohort"] + line["dropped"] == 10 for line in lossy_run.metrics)


def test_losses_are_told_as_they_happen(lossy_run: FinishedRun) -> None:
    assert "clients were lost (" in lossy_run.printed
    assert "clients released the sum (" in lossy_run.printed
