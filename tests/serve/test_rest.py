"""``serve.rest``: the protocol over HTTP, and what is told to whom."""

import json
from typing import Any

import numpy as np
import pytest

from tests.serve.serving import Server, binary, expected, labelled, linear, request, rows

X = rows(3)


def test_health_is_told(server: Server) -> None:
    assert server.json("/v2/health/live") == {"live": True}
    assert server.json("/v2/health/ready") == {"ready": True}
    assert server.json("/v2/models/linear/ready") == {"name": "linear", "ready": True}
    assert server.json("/v2/models/versioned/versions/2/ready") == {"name": "versioned", "ready": True}


def test_metadata_name_tensors_versions_and_provenance(server: Server) -> None:
    assert server.json("/v2")["extensions"] == ["binary_tensor_data"]
    found = server.json("/v2/models/linear")
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    assert found["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]
    assert found["properties"]["run"] == "0123abcd"
    assert server.json("/v2/models/versioned")["versions"] == ["1", "2", "10"]
    assert [(one["name"], one["version"]) for one in server.json("/v2/models")["models"]] == [
        ("linear", "1"),
        ("versioned", "1"),
        ("versioned", "2"),
        ("versioned", "10"),
    ]


def test_json_is_answered_in_json_with_the_request_s_id(server: Server) -> None:
    status, answer = server.infer({"id": "seven", **request(X)})
    assert status == 200
    assert answer["id"] == "seven"
    assert (answer["model_name"], answer["model_version"]) == ("linear", "1")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [3, 4])
    assert np.allclose(np.array(output["data"]).reshape(3, 4), expected(labelled(), X), rtol=1e-5)


def test_flat_data_are_taken_as_nested_ones_are(server: Server) -> None:
    assert server.infer(request(X, data=X.reshape(-1).tolist())) == server.infer(request(X))


def test_bytes_are_answered_in_bytes(server: Server) -> None:
    body, headers = binary(X)
    status, answer = server.call("POST", "/v2/models/linear/infer", body, headers)
    assert status == 200
    assert np.allclose(np.frombuffer(answer[-48:], np.float32).reshape(3, 4), expected(labelled(), X), rtol=1e-5)
    assert json.loads(answer[:-48])["outputs"][0]["parameters"] == {"binary_data_size": 48}


def test_each_version_answers_for_itself_and_the_newest_for_all(server: Server) -> None:
    def ask(path: str) -> Any:
        _, answer = server.call("POST", f"/v2/models/versioned{path}/infer", json.dumps(request(X)).encode())
        return json.loads(answer)

    for version in (1, 2, 10):
        data = ask(f"/versions/{version}")["outputs"][0]["data"]
        assert np.allclose(np.array(data).reshape(3, 4), expected(linear(seed=version), X), rtol=1e-5)
    assert ask("") == ask("/versions/10")


def test_more_rows_than_a_batch_come_back_in_order(server: Server) -> None:
    many = rows(50)
    _, answer = server.infer(request(many))
    assert np.allclose(np.array(answer["outputs"][0]["data"]).reshape(50, 4), expected(labelled(), many), rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"[]", 400, "Expected `object`, got `array`"),
        (b"[" * 30_000, 400, "Expected `object`, got `array`"),
        (b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}", 400, "Expected `object`, got `array` - at `$.inputs[0]`"),
        (b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,1,4,4],"data":[NaN]}]}', 400, "not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        ({}, 400, "missing required field `inputs`"),
        ({"inputs": []}, 400, "lacks the input 'input'"),
        ({"inputs": [3]}, 400, "Expected `object`, got `int` - at `$.inputs[0]`"),
        (request(X, name="imput"), 400, "no input 'imput'; it has 'input'"),
        (request(X, name=None), 400, "Expected `str`, got `null` - at `$.inputs[0].name`"),
        (request(X, datatype="FP64"), 400, "takes FP32, not 'FP64'"),
        (request(X, datatype={}), 400, "Expected `str`, got `object`"),
        (request(X, shape=[3, 16]), 400, "takes the shape [-1, 1, 4, 4] (-1 is any size of 1 or more), not [3, 16]"),
        (request(X, shape="3"), 400, "Expected `array`, got `str` - at `$.inputs[0].shape`"),
        (request(X, shape=[1 << 70, 1, 4, 4]), 400, "must be a list of integers"),
        (request(X, shape=[1 << 40, 1, 4, 4]), 400, "neither flat nor nested as the shape [1099511627776, 1, 4, 4]"),
        (request(X, shape=[0, 1, 4, 4], data=[]), 400, "takes the shape"),
        (request(X, data=None), 400, "must be a list"),
        (request(X, data=[["a"]]), 400, "numbers that FP32 can hold"),
        (request(X, data=[[1, 2], [3]]), 400, "all equally long"),
        (request(X, parameters=[]), 400, "Expected `object`, got `array` - at `$.inputs[0].parameters`"),
        (request(X, parameters={"binary_data_size": 1 << 30}), 400, "up to those that follow, 0"),
        (request(X, parameters={"binary_data_size": -1}), 400, "binary_data_size"),
        (request(X, parameters={"binary_data_size": 0}), 400, "either data or binary_data_size"),
        ({"inputs": request(X)["inputs"] * 2}, 400, "given twice"),
        ({**request(X), "outputs": [{"name": "probabilities"}]}, 400, "no output 'probabilities'; it has 'logits'"),
        ({**request(X), "outputs": {}}, 400, "Expected `array`, got `object` - at `$.outputs`"),
        ({**request(X), "outputs": [{"name": "logits"}] * 2}, 400, "'logits' is asked for twice"),
        ({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, 4, 4]}]}, 400, "has neither data nor"),
        (b'{"id":' + b"[" * 5000 + b"]" * 5000 + b',"inputs":[]}', 400, "Expected `str | null`, got `array`"),
        (b'{"more":' + b"[" * 5000 + b"]" * 5000 + b',"inputs":[]}', 400, "the body is not JSON"),
        (request(rows(65)), 413, "this server queues 64, send them in parts"),
        (b" " * 65_537, 413, "this server takes 65536"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(server: Server, body: Any, status: int, told: str) -> None:
    assert_refused(server.infer(body), status, told)


def assert_refused(answered: tuple[int, Any], status: int, told: str) -> None:
    assert answered[0] == status, answered
    assert set(answered[1]) == {"error"}
    assert told in answered[1]["error"]


@pytest.mark.parametrize(
    ("length", "told"),
    [("9999", "must be a number of bytes up to"), ("-1", "must be a number"), ("x", "must be a number"), ("5", "JSON")],
)
def test_a_wrong_header_length_is_refused(server: Server, length: str, told: str) -> None:
    body, _ = binary(X)
    status, answer = server.call("POST", "/v2/models/linear/infer", body, {"Inference-Header-Content-Length": length})
    assert_refused((status, json.loads(answer)), 400, told)


@pytest.mark.parametrize("cut", [1, 100, 192])
def test_truncated_bytes_are_refused(server: Server, cut: int) -> None:
    body, headers = binary(X)
    status, answer = server.call("POST", "/v2/models/linear/infer", body[:-cut], headers)
    assert_refused((status, json.loads(answer)), 400, "binary_data_size must be a number of bytes up to")


def test_bytes_that_belong_to_no_input_are_refused(server: Server) -> None:
    body, headers = binary(X)
    status, answer = server.call("POST", "/v2/models/linear/infer", body + b"more", headers)
    assert_refused((status, json.loads(answer)), 400, "4 bytes follow that no input")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bytes_of_no_finite_number_are_refused(server: Server, value: float) -> None:
    body, headers = binary(np.full_like(X, value))
    status, answer = server.call("POST", "/v2/models/linear/infer", body, headers)
    assert_refused((status, json.loads(answer)), 400, "not a finite FP32")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/absent", 404),
        ("GET", "/v2/models/absent/ready", 404),
        ("GET", "/v2/models/versioned/versions/3", 404),
        ("GET", "/v2/models/versioned/versions/x", 404),
        ("POST", "/v2/models/absent/infer", 404),
        ("GET", "/v2/models/linear/infer", 405),
        ("DELETE", "/v2/models/linear", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/..%2f..%2fetc/ready", 404),
    ],
)
def test_what_is_not_there_is_told_so_in_json(server: Server, method: str, path: str, status: int) -> None:
    found, answer = server.call(method, path)
    assert found == status
    assert set(json.loads(answer)) == {"error"}


def test_a_coded_body_is_refused_unread(server: Server) -> None:
    status, answer = server.call("POST", "/v2/models/linear/infer", b"x", {"content-encoding": "gzip"})
    assert (status, json.loads(answer)["error"]) == (415, "send the body without a content-encoding")


def test_an_infinite_output_has_no_json_and_is_said_to_have_none(server: Server) -> None:
    huge = np.full_like(X, 3e38)
    assert_refused(server.infer(request(huge)), 500, "is not finite, which JSON cannot carry")
    body, headers = binary(huge)
    assert server.call("POST", "/v2/models/linear/infer", body, headers)[0] == 200


def test_metrics_count_requests_and_batches_and_take_no_names_from_clients(server: Server) -> None:
    server.infer(request(X))
    server.infer(request(X), model="made-up-by-a-client")
    text = server.call("GET", "/metrics")[1].decode()
    for series in (
        'pruneseal_requests_total{model="linear",outcome="ok",protocol="http",version="1"}',
        'pruneseal_requests_total{model="",outcome="UnknownModel",protocol="http",version=""}',
        'pruneseal_request_seconds_count{model="linear",protocol="http",version="1"}',
        'pruneseal_batch_rows_count{model="linear",version="1"}',
        'pruneseal_queue_rows{model="linear",version="1"} 0.0',
        'pruneseal_model_loaded{model="versioned",version="10"} 1.0',
    ):
        assert series in text
    assert "made-up-by-a-client" not in text


def test_the_page_may_load_nothing_from_elsewhere(server: Server) -> None:
    status, page = server.call("GET", "/")
    assert status == 200
    assert b"<title>PruneSeal" in page
    assert b"src=" not in page
    assert b"//cdn" not in page
