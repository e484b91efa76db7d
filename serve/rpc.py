"""The gRPC face: ``inference.GRPCInferenceService`` of the Open Inference Protocol.

Tensors come and go as raw bytes or as typed contents; a request in one form is answered in the same.

A message is looked at before it is parsed: protobuf makes 44 bytes of every byte of an empty input, and up to 16 of one
of typed contents, before anybody can say that there are too many of them.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from protocol.errors import (
    BadRequest,
    ConfigError,
    InferenceError,
    Overloaded,
    RequestRefused,
    TooLarge,
    UnknownModel,
)
from serve import inference_pb2 as messages
from serve.inference import EXTENSIONS, Given, Output, describe, fit, infer
from serve.limits import ByteBudget
from serve.metrics import Metrics
from serve.repository import Repository
from serve.tensors import MAX_RANK, to_bytes

LOG = logging.getLogger(__name__)

SERVICE: Final = "inference.GRPCInferenceService"
_CONCURRENT: Final = 128
"""Calls that are answered at the same time, over all connections; one more is refused at once."""
_ENVELOPE: Final = 1 << 16
"""Bytes of a message that are not tensors."""
_MOST_FIELDS: Final = 1024
"""Inputs, outputs, parameters and raw contents of one request, together."""
_MOST_TYPED: Final = 1 << 20
"""Values of one request's typed contents, of which protobuf makes many bytes each; more come as raw bytes."""

_STATUS: Final[Mapping[type[RequestRefused], grpc.StatusCode]] = {
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Overloaded: grpc.StatusCode.UNAVAILABLE,
    InferenceError: grpc.StatusCode.INTERNAL,
}
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where typed contents of a type stand; FP16 has raw bytes alone."""

_Method = Callable[[Any], Awaitable[Any]]


class Rpc:
    """The service's methods."""

    def __init__(self, repository: Repository, metrics: Metrics, budget: ByteBudget) -> None:
        self._repository, self._metrics, self._budget = repository, metrics, budget

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods by name."""
        methods: dict[str, tuple[_Method, Any]] = {
            "ServerLive": (self._live, messages.ServerLiveRequest),
            "ServerReady": (self._ready, messages.ServerReadyRequest),
            "ModelReady": (self._model_ready, messages.ModelReadyRequest),
            "ServerMetadata": (self._server, messages.ServerMetadataRequest),
            "ModelMetadata": (self._model, messages.ModelMetadataRequest),
            "ModelInfer": (self._infer, None),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    _guarded(method),
                    request_deserializer=request.FromString if request is not None else None,
                    response_serializer=_serialised,
                )
                for name, (method, request) in methods.items()
            },
        )

    async def _live(self, _: messages.ServerLiveRequest) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    async def _ready(self, _: messages.ServerReadyRequest) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=True)

    async def _model_ready(self, request: messages.ModelReadyRequest) -> messages.ModelReadyResponse:
        try:
            self._repository.get(request.name, request.version)
        except UnknownModel:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    async def _server(self, _: messages.ServerMetadataRequest) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(name="pruneseal", version=version("pruneseal"), extensions=EXTENSIONS)

    async def _model(self, request: messages.ModelMetadataRequest) -> messages.ModelMetadataResponse:
        servable = self._repository.get(request.name, request.version)
        return messages.ModelMetadataResponse(**describe(servable, self._repository.versions(servable.name)))

    async def _infer(self, data: bytes) -> messages.ModelInferResponse:
        started, key, outcome = time.perf_counter(), ("", ""), "failed"
        try:
            with self._budget.reserve(len(data)):
                request = parse_request(data)
                servable = self._repository.get(request.model_name, request.model_version)
                key = servable.name, servable.version
                asked = fit(servable, given(request), [output.name for output in request.outputs])
                name, raw = request.id, bool(request.raw_input_contents)
                del request  # it does not wait
                outputs = await infer(asked)
            outcome = "ok"
        except RequestRefused as error:
            outcome = type(error).__name__
            raise
        finally:
            self._metrics.request(key, "grpc", outcome, time.perf_counter() - started)
        response = messages.ModelInferResponse(model_name=key[0], model_version=key[1], id=name)
        _fill(response, outputs, raw)
        return response


def parse_request(data: bytes) -> messages.ModelInferRequest:
    """The message that these bytes are.

    Raises:
        BadRequest: They are none, or one of more inputs, outputs and parameters than any model has.
    """
    at = fields = 0
    while at < len(data):
        if fields == _MOST_FIELDS:
            raise BadRequest(f"a request has {_MOST_FIELDS} inputs, outputs and parameters at most")
        at, fields = _end_of_field(data, at), fields + 1
    try:
        request = messages.ModelInferRequest()
        request.ParseFromString(data)
    except DecodeError as error:
        raise BadRequest(f"the message is not a ModelInferRequest: {error}") from error
    return request


def _end_of_field(data: bytes, at: int) -> int:
    """Where a field of a message ends that begins here; at most at the end of the message."""
    key, at = _varint(data, at)
    kind = key & 7
    if kind == 0:
        return _varint(data, at)[1]
    if kind == 2:
        length, at = _varint(data, at)
        return at + length
    if kind in (1, 5):
        return at + (8 if kind == 1 else 4)
    raise BadRequest("the message is not a ModelInferRequest: it has a group, or a field of no known kind")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins here, and where it ends."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise BadRequest("the message is not a ModelInferRequest: a number in it does not end")


def given(request: messages.ModelInferRequest) -> Iterator[Given]:
    """The inputs of a request, raw or typed."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"the request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents")
    typed = 0
    for place, one in enumerate(request.inputs):
        field = _CONTENTS.get(one.datatype)
        data: bytes | Sequence[int | float]
        if raw:
            if one.HasField("contents"):
                raise BadRequest("an input has either contents or raw_input_contents")
            data = raw[place]
        elif field is None:
            raise BadRequest(f"{one.datatype[:100]!r} has no typed contents; send raw_input_contents")
        else:
            data = getattr(one.contents, field)
            typed += len(data)
            if typed > _MOST_TYPED:
                raise TooLarge(f"typed contents are {_MOST_TYPED} values at most; send raw_input_contents")
        yield Given(one.name, one.datatype, one.shape[: MAX_RANK + 1], data)


def _fill(response: messages.ModelInferResponse, outputs: list[Output], raw: bool) -> None:
    """Put outputs into a response, all of them raw or all typed."""
    raw = raw or any(tensor.datatype not in _CONTENTS for tensor, _ in outputs)
    for tensor, array in outputs:
        entry = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(to_bytes(tensor, array))
        else:
            getattr(entry.contents, _CONTENTS[tensor.datatype]).extend(array.reshape(-1).tolist())


def _serialised(response: Any) -> bytes:
    return bytes(response.SerializeToString())


def _guarded(method: _Method) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]:
    """The method, its refusals as the protocol's status codes."""

    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(request)
        except RequestRefused as error:
            code = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
            LOG.info("a call is refused", extra={"status": code.name, "reason": str(error)})
            await context.abort(code, str(error))
            raise

    return call


def server(rpc: Rpc, host: str, port: int, max_bytes: int) -> tuple[grpc.aio.Server, int]:
    """A server that listens and answers once it is started, and its port.

    Raises:
        ConfigError: The address is taken or not of this machine.
    """
    calls = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_bytes + _ENVELOPE),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_connection_idle_ms", 300_000),
            ("grpc.max_concurrent_streams", _CONCURRENT),
        ],
        maximum_concurrent_rpcs=_CONCURRENT,
    )
    calls.add_generic_rpc_handlers((rpc.handlers(),))
    try:
        return calls, calls.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: choose another --host or --grpc-port") from error
