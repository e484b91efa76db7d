"""The REST face: the Open Inference Protocol over HTTP, with the binary tensor extension.

With the extension a body is JSON of ``Inference-Header-Content-Length`` bytes and then the bytes of the tensors that
have ``binary_data_size``, in their order; so are responses, for outputs asked for with ``binary_data``.

JSON is read as the types below and as nothing else, so that a body of brackets is refused where it stands, and no
memory is spent on members that nobody asks for; the numbers of a tensor stay text until it is known what they are for.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

import msgspec
import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Lifespan

from protocol.errors import BadRequest, InferenceError, Overloaded, RequestRefused, TooLarge, UnknownModel
from serve import page
from serve.inference import EXTENSIONS, Given, Output, describe, fit, infer
from serve.limits import ByteBudget
from serve.metrics import Metrics
from serve.repository import Repository, Servable
from serve.tensors import to_bytes

LOG = logging.getLogger(__name__)

_OPENAPI: Final = files("serve").joinpath("openapi.yaml").read_bytes()
_HEADER_LENGTH: Final = "inference-header-content-length"
_STATUS: Final[Mapping[type[RequestRefused], int]] = {
    BadRequest: 400,
    UnknownModel: 404,
    TooLarge: 413,
    Overloaded: 503,
    InferenceError: 500,
}


class _OfInput(msgspec.Struct):
    """The parameters of an input."""

    binary_data_size: int | None = None


class _OfOutput(msgspec.Struct):
    """The parameters of an output."""

    binary_data: bool | None = None


class _OfRequest(msgspec.Struct):
    """The parameters of a request."""

    binary_data_output: bool = False


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: _OfInput = msgspec.field(default_factory=_OfInput)


class _Output(msgspec.Struct):
    name: str
    parameters: _OfOutput = msgspec.field(default_factory=_OfOutput)


class _Request(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] = msgspec.field(default_factory=list)
    parameters: _OfRequest = msgspec.field(default_factory=_OfRequest)
    id: str | None = None


_REQUESTS: Final = msgspec.json.Decoder(_Request)


class Rest:
    """The handlers; ``application`` gives them their addresses."""

    def __init__(self, repository: Repository, metrics: Metrics, max_bytes: int, budget: ByteBudget) -> None:
        self._repository, self._metrics, self._max_bytes, self._budget = repository, metrics, max_bytes, budget

    def application(self, lifespan: Lifespan[Starlette]) -> Starlette:
        """The ASGI application."""
        one, numbered = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        application = Starlette(
            routes=[
                *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (one, numbered)),
                Route("/v2/health/live", self.live),
                Route("/v2/health/ready", self.ready),
                Route("/v2", self.server),
                Route("/v2/models", self.models),
                *(Route(path, self.model) for path in (one, numbered)),
                *(Route(f"{path}/ready", self.model_ready) for path in (one, numbered)),
                Route("/metrics", self.metrics),
                Route("/openapi.yaml", self.openapi),
                Route("/", self.page),
            ],
            exception_handlers={RequestRefused: _refused, HTTPException: _http_error, Exception: _failed},
            lifespan=lifespan,
        )
        application.router.redirect_slashes = False
        return application

    async def infer(self, request: Request) -> Response:
        """Answer an inference request."""
        started, key, outcome = time.perf_counter(), ("", ""), "failed"
        try:
            servable = self._repository.get(**_names(request))
            key = servable.name, servable.version
            response = await self._infer(servable, request)
            outcome = "ok"
        except RequestRefused as error:
            outcome = type(error).__name__
            raise
        except ClientDisconnect:
            outcome = "disconnected"
            return Response(status_code=400)
        finally:
            self._metrics.request(key, "http", outcome, time.perf_counter() - started)
        return response

    async def _infer(self, servable: Servable, request: Request) -> Response:
        length = request.headers.get("content-length", "")
        size = int(length) if length.isdecimal() else self._max_bytes
        if size > self._max_bytes:
            raise TooLarge(f"the body has {size} bytes; this server takes {self._max_bytes}, send fewer rows at a time")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "send the body without a content-encoding")
        with self._budget.reserve(size):
            body = await _read(request, self._max_bytes)
            head, binary = parse_request(body, request.headers.get(_HEADER_LENGTH))
            asked = fit(servable, given(head.inputs, binary), [output.name for output in head.outputs])
            default = head.parameters.binary_data_output
            flags = [default if (own := output.parameters.binary_data) is None else own for output in head.outputs]
            name = head.id
            del body, head  # they do not wait
            return _response(servable, name, flags or [default] * len(asked.places), await infer(asked))

    async def live(self, _: Request) -> Response:
        """The process answers."""
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        """All models are loaded: nothing answers before that."""
        return _json({"ready": True})

    async def server(self, _: Request) -> Response:
        """What this server is."""
        return _json({"name": "pruneseal", "version": version("pruneseal"), "extensions": EXTENSIONS})

    async def models(self, _: Request) -> Response:
        """The metadata of every version of every model."""
        return _json(
            {
                "models": [
                    {**describe(servable, [servable.version]), "version": servable.version}
                    for servable in self._repository
                ]
            }
        )

    async def model(self, request: Request) -> Response:
        """The metadata of a model."""
        servable = self._repository.get(**_names(request))
        return _json(describe(servable, self._repository.versions(servable.name)))

    async def model_ready(self, request: Request) -> Response:
        """Whether a model can be asked; 404 if not."""
        servable = self._repository.get(**_names(request))
        return _json({"name": servable.name, "ready": True})

    async def metrics(self, _: Request) -> Response:
        """The state of the server for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, _: Request) -> Response:
        """This interface, described by itself."""
        return Response(_OPENAPI, media_type="application/yaml")

    async def page(self, _: Request) -> Response:
        """A page to try a model on."""
        return Response(page.HTML, media_type="text/html", headers=page.HEADERS)


def _names(request: Request) -> dict[str, str]:
    """Model and version of the address."""
    path = request.path_params
    return {"name": path["model"], "version": path.get("version", "")}


async def _read(request: Request, limit: int) -> bytearray:
    """The body.

    Raises:
        TooLarge: It is longer than ``limit``.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body has more than {limit} bytes, which is all that this server takes")
    return body


def parse_request(body: bytes | bytearray, header_length: str | None) -> tuple[_Request, memoryview]:
    """The JSON of a body, and the bytes after it.

    Args:
        body: All of it.
        header_length: The header that says where the JSON ends, if there is one.

    Raises:
        BadRequest: It is no request.
    """
    if header_length is None:
        end = len(body)
    elif header_length.isdecimal() and len(header_length) < 20 and int(header_length) <= len(body):
        end = int(header_length)
    else:
        raise BadRequest(f"Inference-Header-Content-Length must be a number of bytes up to {len(body)}, the body's")
    whole = memoryview(body)
    try:
        return _REQUESTS.decode(whole[:end]), whole[end:]
    except msgspec.ValidationError as error:
        raise BadRequest(f"the request is not as the protocol has it: {error}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def given(inputs: list[_Input], binary: memoryview) -> Iterator[Given]:
    """The inputs, those in bytes with their part of ``binary``."""
    at = 0
    for one in inputs:
        size = one.parameters.binary_data_size
        data: memoryview | msgspec.Raw
        if size is not None:
            if not 0 <= size <= len(binary) - at:
                raise BadRequest(
                    f"binary_data_size must be a number of bytes up to those that follow, {len(binary) - at}"
                )
            if one.data is not msgspec.UNSET:
                raise BadRequest("an input has either data or binary_data_size")
            data = binary[at : at + size]
            at += size
        elif isinstance(one.data, msgspec.Raw):
            data = one.data
        else:
            raise BadRequest(f"the input {one.name[:100]!r} has neither data nor binary_data_size")
        yield Given(one.name, one.datatype, one.shape, data)
    if at != len(binary):
        raise BadRequest(f"{len(binary) - at} bytes follow that no input's binary_data_size accounts for")


def _response(servable: Servable, name: str | None, binaries: list[bool], outputs: list[Output]) -> Response:
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for (tensor, array), is_binary in zip(outputs, binaries, strict=True):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if is_binary:
            binary.append(to_bytes(tensor, array))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InferenceError(f"{tensor.name!r} is not finite, which JSON cannot carry; ask for binary data")
        else:
            entry["data"] = array.astype(np.float32) if array.dtype == np.float16 else array
            entry["data"] = np.ascontiguousarray(entry["data"]).reshape(-1)
        described.append(entry)
    answer: dict[str, Any] = {"model_name": servable.name, "model_version": servable.version, "outputs": described}
    if name is not None:
        answer["id"] = name
    text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(binaries):
        return Response(text, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Response(b"".join((text, *binary)), media_type="application/octet-stream", headers=headers)


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    LOG.info("a request is refused", extra={"status": status, "reason": str(error)})
    # What is left of a refused body is not read; neither is what would follow it.
    headers = {"connection": "close"} if status == 413 else {"retry-after": "1"} if status == 503 else None
    return _json({"error": str(error)}, status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    known = error if isinstance(error, HTTPException) else HTTPException(500)
    return _json({"error": known.detail}, known.status_code, known.headers)


async def _failed(_: Request, error: Exception) -> Response:
    LOG.error("a request failed", exc_info=error)
    return _json({"error": "the server failed; its log says why"}, 500)
