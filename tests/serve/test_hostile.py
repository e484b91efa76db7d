"""Clients that mean harm: the server closes or refuses, its memory stays bounded, and it answers others meanwhile."""

import asyncio
import contextlib
import http.client
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protocol.errors import Overloaded, TooLarge
from serve import inference_pb2 as messages
from serve import rpc
from serve.limits import ByteBudget
from serve.metrics import Metrics
from serve.repository import Repository
from tests.serve.serving import Server, linear, request, rows, save, serving
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

MIB = 1 << 20
POST = b"POST /v2/models/linear/infer HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = save(linear(), tmp_path_factory.mktemp("hostile") / "linear.onnx")
    with serving(file, "--max-connections", "64", "--idle-timeout", "2", "--max-request-bytes", str(MIB)) as server:
        yield server


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def everything(connection: socket.socket) -> bytes:
    """What the server says until it closes."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


def alive(server: Server) -> bool:
    try:
        return server.infer(request(rows(2)))[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_claim_of_a_gigabyte_is_refused_at_once(guarded: Server) -> None:
    before = guarded.memory()
    with connect(guarded.port) as connection:
        connection.sendall(POST + b"content-length: 1073741824\r\n\r\n")
        said = everything(connection)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"the body has 1073741824 bytes; this server takes 1048576" in said
    assert guarded.memory() - before < 16 * MIB
    assert alive(guarded)


@pytest.mark.parametrize("head", [POST, b"GET /v2 HTTP/1.1\r\n"])
def test_a_head_without_end_is_cut(guarded: Server, head: bytes) -> None:
    before, sent = guarded.memory(), 0
    with connect(guarded.port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head + b"x-filler: ")
        while sent < 256 * MIB:
            sent += connection.send(b"a" * 65536)
    assert sent < 64 * MIB
    assert guarded.memory() - before < 32 * MIB
    assert alive(guarded)


def test_chunks_without_end_are_cut(guarded: Server) -> None:
    before, sent = guarded.memory(), 0
    with connect(guarded.port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        while sent < 256 * MIB:
            sent += connection.send(b"10000\r\n" + b"a" * 65536 + b"\r\n")
    assert sent < 64 * MIB
    assert guarded.memory() - before < 32 * MIB
    assert alive(guarded)


@pytest.mark.parametrize("start", [b"", b"POST /v2", POST + b"content-length: 100\r\n\r\n{"])
def test_a_request_that_does_not_arrive_is_closed_in_time(guarded: Server, start: bytes) -> None:
    with connect(guarded.port) as connection:
        began = time.monotonic()
        connection.sendall(start)
        assert everything(connection) == b""
        assert 1 < time.monotonic() - began < 10
    assert alive(guarded)


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
)
def test_what_is_no_http_is_closed(guarded: Server, garbage: bytes) -> None:
    with connect(guarded.port) as connection:
        connection.sendall(garbage)
        assert b"200 OK" not in everything(connection)
    assert alive(guarded)


def test_a_body_of_nothing_but_brackets_takes_no_memory_to_speak_of(guarded: Server) -> None:
    before = guarded.memory()
    body = b'{"inputs":[' + b"[]," * 300_000 + b"[]]}"
    assert guarded.infer(body)[0] == 400
    assert guarded.infer(b"[" * MIB)[0] == 400
    assert guarded.memory() - before < 64 * MIB


def with_data(data: bytes) -> bytes:
    return b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1000,1,4,4],"data":[' + data + b"]}]}"


@pytest.mark.parametrize(
    "body",
    [
        with_data(b'"' + b"a" * 900_000 + b'"' + b',""' * 999),
        with_data(b",".join([b"[-9]"] * 180_000)),
        with_data(b",".join([b'{"":0}'] * 130_000)),
        b'{"more":{' + b",".join(b'"%d":{}' % i for i in range(90_000)) + b'},"inputs":[]}',
        b'{"outputs":[' + b",".join([b'{"name":"logits"}'] * 55_000) + b'],"inputs":[]}',
        b'{"inputs":[' + b",".join([b'{"name":"","datatype":"","shape":[]}'] * 25_000) + b"]}",
        b'{"inputs":[{"name":"input","datatype":"FP32","shape":[' + b",".join([b"9"] * 500_000) + b'],"data":[]}]}',
    ],
    ids=["one-long-text", "short-rows", "objects", "members", "outputs", "inputs", "shape"],
)
def test_no_body_takes_more_than_twenty_times_its_bytes(guarded: Server, body: bytes) -> None:
    before = guarded.memory()
    assert guarded.infer(body)[0] == 400
    assert guarded.memory() - before < 20 * len(body)


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message."""
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


TYPED = field(1, b"input") + field(2, b"FP32") + field(3, b"\x01\x01\x04\x04")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x2a\x00" * 500_000, "1024 inputs, outputs and parameters at most"),
        (b"\x32\x00" * 500_000, "1024 inputs, outputs and parameters at most"),
        (b"\x22\x00" * 500_000, "1024 inputs, outputs and parameters at most"),
        (field(5, b"\x22\x00" * 500_000), "has no typed contents"),
        (field(5, field(1, b"input") + field(2, b"FP32") + field(3, b"\x01" * MIB)), "must be a list of integers"),
        (field(5, TYPED + field(5, field(3, b"\x01" * MIB))), "are 0 values"),
        (field(5, TYPED + field(5, b"\x42\x00" * 500_000)), "are 0 values"),
        (field(6, field(1, b"logits")) * 2 + field(5, TYPED), "asked for twice"),
        (b"\x0b", "a group"),
        (b"\x28" + b"\xff" * 20, "does not end"),
        (b"\x2a\x7f", "is not a ModelInferRequest"),
    ],
    ids=[
        "inputs",
        "outputs",
        "parameters",
        "of-an-input",
        "shape",
        "int64",
        "texts",
        "twice",
        "group",
        "number",
        "cut",
    ],
)
def test_no_call_takes_more_than_twenty_times_its_bytes(guarded: Server, content: bytes, told: str) -> None:
    before = guarded.memory()
    with grpc.insecure_channel(guarded.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match=told) as caught:
            call(field(1, b"linear") + content, timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert guarded.memory() - before < 20 * len(content) + 4 * MIB


def test_more_typed_values_than_are_counted_one_by_one_must_come_as_bytes() -> None:
    request = messages.ModelInferRequest(model_name="linear")
    one = request.inputs.add(name="input", datatype="FP32", shape=[1 << 17, 1, 4, 4])
    one.contents.fp32_contents.extend([0.0] * ((1 << 20) + 1))
    with pytest.raises(TooLarge, match="send raw_input_contents"):
        list(rpc.given(rpc.parse_request(request.SerializeToString())))


def test_calls_share_the_memory_that_all_requests_have() -> None:
    metrics = Metrics()
    calls = rpc.Rpc(Repository(Path(), lambda *_: pytest.fail("it is loaded"), metrics), metrics, ByteBudget(10))
    with pytest.raises(Overloaded):
        asyncio.run(calls._infer(bytes(11)))


def test_connections_beyond_the_cap_are_told_and_closed_and_the_rest_answered(guarded: Server) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=30)
    kept.request("GET", "/v2/health/live")
    assert kept.getresponse().read() == b'{"live":true}'
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(guarded.port)) for _ in range(200)]
        assert everything(opened[-1]).startswith(b"HTTP/1.1 503 ")
        kept.request("GET", "/v2/health/live")
        assert kept.getresponse().read() == b'{"live":true}'
    kept.close()
    wait_for(lambda: alive(guarded))  # those that have just been closed may count for a moment


def test_ten_thousand_open_connections_are_survived(tmp_path: Path) -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < 11_000:
        pytest.skip(f"this process may open {files} files, fewer than 11,000")
    file = save(linear(), tmp_path / "linear.onnx")
    with serving(file, "--idle-timeout", "5", "--max-connections", "1000") as server:
        before = server.memory()
        for port in (server.port, server.grpc_port):
            with contextlib.ExitStack() as stack:
                for _ in range(10_000):
                    with contextlib.suppress(OSError):
                        stack.enter_context(connect(port))
                assert server.process.poll() is None
        wait_for(lambda: alive(server))
        assert alive(server)
        assert server.memory() - before < 256 * MIB
