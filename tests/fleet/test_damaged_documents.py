"""The JSON files of the operator's desk, damaged or made to do harm: always an error of ours, with file and key."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fleet.provisioning.federation import Federation
from fleet.results.exported import Export
from fleet.results.summary import Summary
from fleet.running.status import look
from protocol.documents import Document
from protocol.errors import CheckpointError, ConfigError, PruneSealError
from tests.fleet.command import call
from tests.fleet.results.test_report import SUMMARY

TIMING = {"threads": 1, "median": 0.1, "p10": 0.1, "p90": 0.1, "cpu": 0.1, "speed": 1.0}
EXPORT: dict[str, Any] = {
    **{"format": "pruneseal-export", "version": "1.0", "recommended": "model.onnx", "reasons": ["faster"]},
    "files": {"model.onnx": {"bytes": 10, "sha256": "00", "max_abs_diff": 0.0}},
    **{"dense_bytes": 20, "int8_refused": "none was asked for", "int8_tolerance": 0.01, "output": "logits"},
    "input": {"name": "input", "shape": [1, 8, 8], "range": [0.0, 16.0]},
    **{"labels": ["0", "1"], "parameters": 4, "kept": 2, "sparsity": 0.5, "multiply_accumulates": 4},
    **{"multiply_accumulates_left": 0.5, "rounded_channels": False, "rounding_speeds": {}, "left_as_it_was": []},
    "layers": [{"name": "fc", "weights": 4, "kept": 2, "dense": 4, "remaining": 2}],
    "latency": [{"threads": 1, "batch": 1, "files": {"dense": TIMING, "model.onnx": TIMING}}],
    **{"machine": {"cpu": "a", "cores": 2}, "provenance": {"data": "digits"}},
}
FEDERATION: dict[str, Any] = {
    **{"format": "pruneseal-federation", "version": "1.0", "plan": "ab", "hosts": ["localhost"], "port": 443},
    "numbers": {"a": 0, "b": 1},
    "enrolled": ["b"],
}
WHOLE: list[tuple[type[Document], dict[str, Any], type[PruneSealError]]] = [
    (Export, EXPORT, CheckpointError),
    (Summary, json.loads(SUMMARY.to_json()), CheckpointError),
    (Federation, FEDERATION, ConfigError),
]


def places(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a JSON value holds members and entries, at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(whole: dict[str, Any], at: tuple[str | int, ...], change: Callable[[Any, str | int], None]) -> bytes:
    """The file with a change at one place."""
    root: Any = json.loads(json.dumps(whole))
    inner = root
    for key in at[:-1]:
        inner = inner[key]
    change(inner, at[-1])
    return json.dumps(root).encode()


@pytest.mark.parametrize(("kind", "whole", "error"), WHOLE)
def test_what_a_file_holds_is_what_is_written_of_it(
    kind: type[Document], whole: dict[str, Any], error: type[PruneSealError], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text(json.dumps(whole))
    made = kind.read(tmp_path / "file")
    made.write(tmp_path / "again")
    again = json.loads((tmp_path / "again").read_text())
    assert kind.read(tmp_path / "again") == made
    assert {key: again[key] for key in whole if key not in {"files"}} == {k: whole[k] for k in whole if k != "files"}


@pytest.mark.parametrize(("kind", "whole", "error"), WHOLE)
def test_a_value_of_no_possible_type_is_named_wherever_it_stands(
    kind: type[Document], whole: dict[str, Any], error: type[PruneSealError]
) -> None:
    for at in places(whole):
        data = changed(whole, at, lambda inner, key: inner.__setitem__(key, [[{"x": None}]]))
        with pytest.raises(error, match=r"^dir/file ") as caught:
            kind.parse(data, "dir/file")
        assert str(at[0]) in str(caught.value)


@pytest.mark.parametrize(("kind", "whole", "error"), WHOLE)
def test_a_key_that_is_missing_is_named(
    kind: type[Document], whole: dict[str, Any], error: type[PruneSealError]
) -> None:
    needed = [name for name, field in kind.model_fields.items() if field.is_required()]
    assert needed
    for name in needed:
        data = changed(whole, (name,), lambda inner, key: inner.pop(key))
        with pytest.raises(error, match=f"^dir/file is damaged: '{name}' is missing$"):
            kind.parse(data, "dir/file")


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A server that gives the same answer to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"[" * 100_000, b'{"status": {}}', b'{"status": NaN}', b'{"held": ' + b"9" * 10_000 + b"}", b"\xff"],
)
def test_an_aggregator_that_answers_nonsense_is_an_error_of_one_line(body: bytes) -> None:
    with answering(body) as url:
        with pytest.raises(ConfigError, match="cannot be read: its answer is damaged"):
            look(url)
        told = call("status", url)
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["--check", "--amend"])
def test_a_damaged_record_of_the_federation_is_named_by_the_commands(tmp_path: Path, command: str) -> None:
    (tmp_path / "kits" / "operator").mkdir(parents=True)
    (tmp_path / "kits" / "operator" / "federation.json").write_text(json.dumps(FEDERATION | {"port": "443"}))
    site = tmp_path / "site.toml"
    clients = "".join(f'[[clients]]\nname = "{name}"\n' for name in "abc")
    site.write_text(f'[aggregator]\nhosts = ["localhost"]\n{clients}')
    given = ("--check", tmp_path / "kits") if command == "--check" else (site, "--out", tmp_path / "kits", "--amend")
    told = call("provision", *given)
    assert told.exit_code == 1
    assert "federation.json is damaged: 'port'" in told.stderr
