"""tritonclient, the protocol's own client, over HTTP and gRPC: nothing of it is changed."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.service_pb2 as theirs
import tritonclient.http
from tritonclient.utils import InferenceServerException

from serve import inference_pb2 as ours
from tests.serve.serving import Server, expected, labelled, linear, rows

pytestmark = pytest.mark.slow

X = rows(5)
CLIENTS = [tritonclient.http, tritonclient.grpc]


@pytest.fixture(params=CLIENTS, ids=["http", "grpc"])
def triton(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def client(triton: ModuleType, server: Server) -> Any:
    address = server.http if triton is tritonclient.http else server.grpc
    with triton.InferenceServerClient(address) as connected:
        yield connected


def given(triton: ModuleType, array: np.ndarray[Any, Any] = X, **options: bool) -> list[Any]:
    tensor = triton.InferInput("input", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, **options)
    return [tensor]


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("versioned", "10")
    assert not client.is_model_ready("absent")
    assert not client.is_model_ready("versioned", "3")


def test_metadata(client: Any, triton: ModuleType) -> None:
    as_json = {} if triton is tritonclient.http else {"as_json": True}
    assert client.get_server_metadata(**as_json)["name"] == "pruneseal"
    found = client.get_model_metadata("versioned", **as_json)
    assert found["versions"] == ["1", "2", "10"]
    assert found["platform"] == "onnxruntime_onnx"
    assert [
        (one["name"], one["datatype"], [*map(int, one["shape"])]) for one in found["inputs"] + found["outputs"]
    ] == [
        ("input", "FP32", [-1, 1, 4, 4]),
        ("logits", "FP32", [-1, 4]),
    ]


def test_inference_in_bytes(client: Any, triton: ModuleType) -> None:
    result = client.infer("linear", given(triton), request_id="7")
    assert np.allclose(result.as_numpy("logits"), expected(labelled(), X), rtol=1e-5)


def test_inference_of_a_version(client: Any, triton: ModuleType) -> None:
    outputs = [triton.InferRequestedOutput("logits")]
    result = client.infer("versioned", given(triton), model_version="2", outputs=outputs)
    assert np.allclose(result.as_numpy("logits"), expected(linear(seed=2), X), rtol=1e-5)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_bytes_and_json_in_all_combinations(server: Server, binary_in: bool, binary_out: bool) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        outputs = [tritonclient.http.InferRequestedOutput("logits", binary_data=binary_out)]
        inputs = given(tritonclient.http, binary_data=binary_in)
        result = client.infer("linear", inputs, outputs=outputs, request_id="x")
        assert result.get_response()["id"] == "x"
        assert np.allclose(result.as_numpy("logits"), expected(labelled(), X), rtol=1e-5)


def test_typed_contents_are_answered_in_typed_contents(server: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        request = theirs.ModelInferRequest(model_name="linear")
        one = request.inputs.add(name="input", datatype="FP32", shape=X.shape)
        one.contents.fp32_contents.extend(X.reshape(-1).tolist())
        answer = client._client_stub.ModelInfer(request)
        assert not answer.raw_output_contents
        data = np.array(answer.outputs[0].contents.fp32_contents, np.float32).reshape(5, 4)
        assert np.allclose(data, expected(labelled(), X), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "array", "name", "told"),
    [
        ("absent", X, "input", "no such model"),
        ("linear", X, "imput", "no input 'imput'"),
        ("linear", X.reshape(5, 16), "input", "takes the shape"),
        ("linear", np.full_like(X, np.nan), "input", "not a finite FP32"),
        ("linear", rows(65), "input", "send them in parts"),
    ],
)
def test_a_refusal_reaches_the_client_with_its_reason(
    client: Any, triton: ModuleType, model: str, array: np.ndarray[Any, Any], name: str, told: str
) -> None:
    tensor = triton.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    with pytest.raises(InferenceServerException, match=told):
        client.infer(model, [tensor])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r.raw_input_contents.append(b""), "1 inputs and 2 raw_input_contents"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"abc"), "takes 320 bytes, not 3"),
        (lambda r: r.inputs[0].contents.fp32_contents.append(1.0), "either contents or raw_input_contents"),
        (lambda r: setattr(r.inputs[0], "datatype", "INT8"), "takes FP32, not 'INT8'"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -5), "takes the shape"),
        (lambda r: r.ClearField("raw_input_contents"), "are 0 values, not those of the shape"),
        (lambda r: r.ClearField("inputs"), "0 inputs and 1 raw_input_contents"),
    ],
)
def test_a_malformed_call_is_an_invalid_argument(server: Server, change: Any, told: str) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        request = theirs.ModelInferRequest(model_name="linear", raw_input_contents=[X.tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=X.shape)
        change(request)
        with pytest.raises(tritonclient.grpc.grpc.RpcError, match=told) as caught:
            client._client_stub.ModelInfer(request)
        assert caught.value.code().name == "INVALID_ARGUMENT"


def test_a_message_beyond_the_limit_is_refused_unread(server: Server) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(InferenceServerException, match="larger than max"),
    ):
        client.infer("linear", given(tritonclient.grpc, rows(5000)))


def test_our_messages_are_theirs_on_the_wire() -> None:
    compared = 0
    for name, message in ours.DESCRIPTOR.message_types_by_name.items():
        other = theirs.DESCRIPTOR.message_types_by_name[name]
        for inner in [message, *message.nested_types]:
            counterpart = other if inner is message else other.nested_types_by_name.get(inner.name)
            for field in inner.fields if counterpart else ():
                if field.name in counterpart.fields_by_name:
                    same = counterpart.fields_by_name[field.name]
                    assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated)
                    compared += 1
    assert compared == 60
