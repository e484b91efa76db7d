"""What reads bytes of others, and genuine bytes for each: frames and files of the tests, and their bad vectors."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from aggregator.journal import AGGREGATE_FILE, METRICS_FILE, RECORD_FILE, RUN_FILE, Journal, read_records
from aggregator.status import STATUS_FILE, Status, read_status
from edge_client.bundle import BUNDLES_FILE, accepted
from edge_client.keys import BLINDING_FILE, COHORT_FILE, PLAN_FILE, ROSTER_FILE, SIGN_FILE, load_kit
from edge_client.state import PENDING_FILE, Pending, Sent, accept_roster, load_pending, save_pending
from fleet.provisioning.federation import Federation
from fleet.provisioning.kits import plan_from_toml, write_client_keys
from fleet.provisioning.site import read_site
from fleet.results.inspect import describe_file
from protocol import checkpoint
from protocol.checkpoint import Checkpoint
from protocol.cohort import decode_cohort
from protocol.npz import read_arrays
from protocol.plan import plan_from_config
from protocol.roster import OPERATOR_PUBLIC_FILE, load_roster
from protocol.support import Support, decode_support, encode_support
from protocol.terms import Terms, decode_terms, encode_terms
from protocol.wire import (
    ATTENDANCE_BYTES,
    SIGNATURE_BYTES,
    decode_aggregate,
    decode_attendance,
    decode_contribution,
    describe,
)
from serve import rest, rpc
from serve.inference import fit
from serve.inference_pb2 import ModelInferRequest
from serve.model import Model, check
from serve.repository import EXPORT_FILE, Servable, model_file
from serve.tensors import Tensor
from serve.trial import Limits, load
from tests import factories
from tests.protocol import frames

_VECTORS: Final = Path(__file__).parents[1] / "tests" / "vectors"
_SLACK: Final = 1 << 18
_MIB: Final = 1 << 20
_OF_TOML: Final = 600
"""What tomllib makes of a dotted name; the operator's own files, and of a bounded length."""
_SIZE: Final = 4096
"""Values of the vector that supports and terms are for; what they take is a multiple of it as well."""
_OF_A_VECTOR: Final = 64 * _SIZE + (1 << 18)


@dataclass(frozen=True)
class Reader:
    """Something that reads bytes of others.

    Attributes:
        name: What it reads.
        seeds: Bytes of the kind that it is for.
        read: Reads bytes.
        mend: Makes what does not depend on luck right again, a signature for one; applied to half of all mutations.
        times: How many times its bytes it may take.
        slack: Bytes that it may take whatever it is given.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    mend: Callable[[bytes], bytes] | None = None
    times: int = 20
    slack: int = _SLACK


def readers(folder: Path) -> list[Reader]:
    """All readers.

    Args:
        folder: An empty folder for the files that they read.
    """
    return [*_of_frames(), *_of_keys(folder), *_of_runs(folder), *_of_files(folder), *_of_serving(folder)]


def _file(path: Path, read: Callable[[], object], mode: int = 0o600) -> Callable[[bytes], object]:
    """A reader of bytes from one of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode)

    def from_file(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return from_file


def _vectors(pattern: str, field: str) -> list[bytes]:
    """The bytes that stand in a field of vectors, at any depth."""
    found = [json.loads(path.read_text()) for path in sorted(_VECTORS.glob(f"{pattern}.json"))]
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


# --- frames --------------------------------------------------------------------------------------


def _of_frames() -> Iterator[Reader]:
    roster, parameters, kit = frames.ROSTER, frames.PARAMETERS, frames.KITS[1]
    every = [*frames.ATTENDANCES, *frames.CONTRIBUTIONS, *frames.AGGREGATES, *_vectors("bad_a*", "encoded")]
    support = Support(np.arange(0, _SIZE, 7, dtype=np.int64), _SIZE)
    whole = Support(np.arange(_SIZE, dtype=np.int64), _SIZE)
    supports = [encode_support(one) for one in (support, whole, Support.of(np.arange(_SIZE) % 2 == 0))]
    layout = factories.layout(_SIZE - 100, 100)
    terms = [encode_terms(Terms(one, np.ones(2, np.float32))) for one in (support, whole)]

    def signed(data: bytes) -> bytes:
        body = data[:-SIGNATURE_BYTES]
        return body + kit.sign(body)

    def cohort_signed(data: bytes) -> bytes:
        parts = [data[i : i + ATTENDANCE_BYTES] for i in range(0, len(data), ATTENDANCE_BYTES)]
        return b"".join(signed(part) if len(part) == ATTENDANCE_BYTES else part for part in parts)

    yield Reader("describe", every, describe)
    yield Reader("attendance", frames.ATTENDANCES, lambda data: decode_attendance(data, roster), signed)
    yield Reader("cohort", [frames.COHORT.encode()], lambda data: decode_cohort(data, roster), cohort_signed)
    yield Reader(
        "contribution",
        frames.CONTRIBUTIONS,
        lambda data: decode_contribution(data, frames.announced_by(1), parameters, roster),
        signed,
        slack=_MIB,  # words that are spread out together
    )
    yield Reader("aggregate", frames.AGGREGATES, lambda data: decode_aggregate(data, parameters), slack=_MIB)
    yield Reader("support", supports, lambda data: decode_support(data, _SIZE), slack=_OF_A_VECTOR)
    yield Reader("terms", terms, lambda data: decode_terms(data, layout), slack=_OF_A_VECTOR)


# --- keys, rosters, plans --------------------------------------------------------------------------


def _of_keys(folder: Path) -> Iterator[Reader]:
    kit, plan = folder / "kit", factories.plan()
    kit.mkdir()
    roster = factories.roster((1, 2, 3))
    write_client_keys(
        kit, factories.SECRET, factories.sign_key(1), factories.blinding_key(1), plan, roster, factories.OPERATOR
    )
    for name in (COHORT_FILE, SIGN_FILE, BLINDING_FILE, PLAN_FILE, ROSTER_FILE, OPERATOR_PUBLIC_FILE):
        genuine = (kit / name).read_bytes()
        yield Reader(f"kit {name}", [genuine], _restored(kit / name, genuine, lambda: load_kit(kit)))
    rosters = [path.read_bytes() for path in sorted(_VECTORS.glob("*roster*.json"))]
    lone = folder / "roster"
    lone.mkdir()
    (lone / OPERATOR_PUBLIC_FILE).write_text(factories.OPERATOR_PUBLIC)
    yield Reader(
        "roster", [(kit / ROSTER_FILE).read_bytes(), *rosters], _file(lone / "r", lambda: load_roster(lone / "r"))
    )
    bundles = folder / BUNDLES_FILE
    yield Reader("bundles", [b"0f" * 32 + b"\n" + b"a1" * 32], _file(bundles, lambda: accepted(folder)))
    serial = folder / f"roster-{roster.cohort_id.hex()}.serial"
    yield Reader("roster serial", [b"1", b"7"], _file(serial, lambda: accept_roster(folder, replace(roster, serial=7))))
    configs = [json.dumps(plan.to_config()).encode()]
    yield Reader("plan config", configs, _of_json(plan_from_config))
    settings = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in plan.to_config().items()).encode()
    app, site = folder / "pyproject.toml", folder / "site.toml"
    yield Reader(
        "app's plan", [b"[tool.flwr.app.config]\n" + settings], _file(app, lambda: plan_from_toml(app)), times=_OF_TOML
    )
    clients = "".join(f'[[clients]]\nname = "site-{number}"\ndata = "digits"\n' for number in range(3)).encode()
    named = b'[aggregator]\nhosts = ["a.example"]\nport = 443\n' + clients + b"[plan]\nrounds = 20\n"
    yield Reader("site", [named], _file(site, lambda: read_site(site)), times=_OF_TOML)


def _restored(path: Path, genuine: bytes, read: Callable[[], object]) -> Callable[[bytes], object]:
    """A reader of a folder in which one file is another for the time of the call."""

    def from_folder(data: bytes) -> object:
        path.write_bytes(data)
        try:
            return read()
        finally:
            path.write_bytes(genuine)

    return from_folder


def _of_json(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    """A reader of objects from one of their JSON; what is no JSON object is passed over."""

    def from_json(data: bytes) -> object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return read(value) if isinstance(value, dict) else None

    return from_json


# --- state and records -------------------------------------------------------------------------------


def _of_runs(folder: Path) -> Iterator[Reader]:
    state, run, plan = folder / "state", folder / "run", factories.plan()
    pending = Pending(
        attendance=frames.ATTENDANCES[0],
        values=np.ones(7, np.float32),
        votes=np.ones(7, np.bool_),
        step=np.ones(7),
        sealed=factories.SEALED,
        metrics={"loss": 0.5, "clipped": 3},
        given=(Sent(1, bytes(32), frozenset({1, 2, 3})),),
    )
    save_pending(state, pending)
    saved = (state / PENDING_FILE).read_bytes()
    arrays = read_arrays(saved)
    place = _file(state / PENDING_FILE, lambda: load_pending(state))
    yield Reader("pending", [saved], place)
    yield Reader("pending notes", [arrays["notes"].tobytes()], lambda data: place(_npz({**arrays, "notes": data})))
    yield Reader("pending values", [_npy(arrays["values"])], lambda data: place(_npz(arrays, values=data)))

    journal = Journal(run, plan)
    record = factories.record(1)
    journal.save(b"sum", record)
    journal.publish(record)
    newest = run / "rounds" / "round-000001"
    name = (run / RUN_FILE).read_bytes()
    yield Reader("run.json", [name], _restored(run / RUN_FILE, name, lambda: Journal(run, plan)))
    line = (newest / RECORD_FILE).read_bytes()
    yield Reader(RECORD_FILE, [line], _restored(newest / RECORD_FILE, line, journal.last))
    metrics = (run / METRICS_FILE).read_bytes()
    yield Reader(
        METRICS_FILE, [metrics, metrics * 3], _restored(run / METRICS_FILE, metrics, lambda: read_records(run))
    )
    status = Status(run="ab" * 16, plan="cd" * 32, method="fedavg", rounds=3, refused={"Duplicate": 1}).to_json()
    yield Reader(STATUS_FILE, [status], _file(run / STATUS_FILE, lambda: read_status(run)))
    federation = Federation(plan="ab" * 32, hosts=("a.example",), port=443, numbers={"a": 0, "b": 1}).to_json()
    yield Reader("federation.json", [federation], lambda data: Federation.parse(data, "it"))
    assert (newest / AGGREGATE_FILE).exists()


def _npy(array: Any) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(arrays: dict[str, Any], **members: bytes) -> bytes:
    """An archive of arrays, of which some are given as bytes of their own, and some as whole members."""
    file = BytesIO()
    with ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            given = np.frombuffer(array, np.uint8) if isinstance(array, bytes) else array
            archive.writestr(f"{name}.npy", members.get(name, _npy(given)))
    return file.getvalue()


# --- models ------------------------------------------------------------------------------------------


def _onnx() -> bytes:
    """A linear model with a dense and a sparse constant, an attribute and metadata."""
    weight = np.arange(36, dtype=np.float32).reshape(6, 6)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w"], ["a"]),
            helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(weight[0], "c")),
            helper.make_node("Add", ["a", "b"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 6))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"labels": '["a", "b"]', "input_range": "[0, 1]"})
    return bytes(model.SerializeToString())


def _of_files(folder: Path) -> Iterator[Reader]:
    stored, shown = folder / "model.safetensors", folder / "model.onnx"
    tensors: dict[str, np.ndarray[Any, Any]] = {"a": np.ones((3, 2), np.float32), "b": np.zeros(4, np.int64)}
    checkpoint.save(stored, Checkpoint(tensors, {"model": "digits-mlp", "round": "3"}))
    saved = stored.read_bytes()
    yield Reader("checkpoint", [saved], _file(stored, lambda: checkpoint.load(stored)))
    other = folder / "file"
    yield Reader("inspect", [saved, *frames.AGGREGATES], _file(other, lambda: describe_file(other)))
    yield Reader("inspect onnx", [_onnx()], _file(shown, lambda: describe_file(shown)), slack=_MIB)


# --- serving -----------------------------------------------------------------------------------------


def _of_serving(folder: Path) -> Iterator[Reader]:
    inputs = {
        "input": Tensor("input", "FP32", np.dtype("<f4"), (-1, 4)),
        "count": Tensor("count", "INT64", np.dtype("<i8"), (-1, 1)),
        "flag": Tensor("flag", "BOOL", np.dtype("?"), (-1, -1)),
    }
    outputs = tuple(Tensor(name, "FP32", np.dtype("<f4"), (-1, 4)) for name in ("logits", "more"))
    servable = Servable("m", "1", Model(inputs, outputs, {}, None), None)  # type: ignore[arg-type]  # nothing runs

    def of_rest(header: int | None) -> Callable[[bytes], object]:
        def ask(data: bytes) -> object:
            head, binary = rest.parse_request(data, None if header is None else str(header))
            return fit(servable, rest.given(head.inputs, binary), [output.name for output in head.outputs])

        return ask

    def of_rpc(data: bytes) -> object:
        request = rpc.parse_request(data)
        return fit(servable, rpc.given(request), [output.name for output in request.outputs])

    x, n, f = [[0.5, -1, 2, 3]] * 2, [[7], [1 << 60]], [[True, False]] * 2
    named = [("input", "FP32", [2, 4], x), ("count", "INT64", [2, 1], n), ("flag", "BOOL", [2, 2], f)]
    told = [{"name": name, "datatype": kind, "shape": shape, "data": data} for name, kind, shape, data in named]
    asked = [{"name": "more", "parameters": {"binary_data": True}}]
    full = json.dumps({"id": "7", "inputs": told, "outputs": asked}).encode()
    raws = [np.array(data, inputs[name].dtype).tobytes() for name, _, _, data in named]
    for one, raw in zip(told, raws, strict=True):
        del one["data"]
        one["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": told}).encode()
    typed = ModelInferRequest(model_name="m")
    for name, kind, shape, _ in named:
        typed.inputs.add(name=name, datatype=kind, shape=shape)
    binary = ModelInferRequest()
    binary.CopyFrom(typed)
    binary.raw_input_contents.extend(raws)
    typed.inputs[0].contents.fp32_contents.extend([0.5] * 8)
    typed.inputs[1].contents.int64_contents.extend([1, -1])
    typed.inputs[2].contents.bool_contents.extend([True] * 4)
    yield Reader("rest json", [full], of_rest(None))
    yield Reader("rest binary", [b"".join((head, *raws))], of_rest(len(head)))
    yield Reader("grpc", [typed.SerializeToString(), binary.SerializeToString()], of_rpc)
    place = folder / "export"
    exported = json.dumps({"recommended": "model.onnx", "files": {"model.onnx": {"bytes": 3}}}).encode()
    yield Reader("export.json", [exported], _file(place / EXPORT_FILE, lambda: model_file(place)))
    yield Reader("model", [_onnx()], check, slack=_MIB)
    tried, limits = folder / "tried.onnx", Limits(file_bytes=_MIB, memory_bytes=2 << 30, seconds=20.0)
    yield Reader("model tried", [_onnx()], _file(tried, lambda: load(tried, 1, limits)), slack=4 * _MIB)
