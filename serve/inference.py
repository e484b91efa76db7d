"""What both faces of the service do: find the model, fit the tensors, run, name the outputs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import BadRequest
from serve.model import Model
from serve.repository import Servable
from serve.tensors import Array, Tensor, from_bytes, from_json

EXTENSIONS: Final = ("binary_tensor_data",)
PLATFORM: Final = "onnxruntime_onnx"


@dataclass(frozen=True)
class Given:
    """An input tensor as a request has it.

    Attributes:
        name: Of the model's input.
        datatype: The protocol's name of the type.
        shape: A list of integers, or what the client sent instead.
        data: Bytes, or parsed JSON.
    """

    name: object
    datatype: object
    shape: object
    data: Any


Output = tuple[Tensor, Array]


async def infer(servable: Servable, given: Iterable[Given], wanted: Sequence[object]) -> list[Output]:
    """The outputs of a model for the inputs of a request.

    Args:
        servable: The model.
        given: The inputs.
        wanted: Names of outputs; none for all of them.

    Raises:
        BadRequest: The inputs or names do not fit the model.
        TooLarge, Overloaded, InferenceError: As ``Batcher.infer`` has it.
    """
    places = _places(servable.model, wanted)
    outputs = await servable.batcher.infer(_inputs(servable.model, given))
    return [(servable.model.outputs[place], outputs[place]) for place in places]


def _places(model: Model, wanted: Sequence[object]) -> list[int]:
    """The places of these outputs among the model's."""
    places = {tensor.name: place for place, tensor in enumerate(model.outputs)}
    for name in wanted:
        if not isinstance(name, str) or name not in places:
            raise BadRequest(f"the model has no output {str(name)[:100]!r}; it has {_list(places)}")
    return [places[str(name)] for name in wanted] or [*places.values()]


def _inputs(model: Model, given: Iterable[Given]) -> dict[str, Array]:
    """The arrays of all inputs, in the model's order."""
    arrays: dict[str, Array] = {}
    for one in given:
        tensor = model.inputs.get(one.name) if isinstance(one.name, str) else None
        if tensor is None:
            raise BadRequest(f"the model has no input {str(one.name)[:100]!r}; it has {_list(model.inputs)}")
        if tensor.name in arrays:
            raise BadRequest(f"the input {tensor.name!r} is given twice")
        if one.datatype != tensor.datatype:
            raise BadRequest(f"{tensor.name!r} takes {tensor.datatype}, not {str(one.datatype)[:100]!r}")
        shape = tensor.fitting(one.shape)
        is_raw = isinstance(one.data, bytes | memoryview)
        arrays[tensor.name] = from_bytes(tensor, shape, one.data) if is_raw else from_json(tensor, shape, one.data)
    if missing := [name for name in model.inputs if name not in arrays]:
        raise BadRequest(f"the request lacks the input {missing[0]!r}; the model takes {_list(model.inputs)}")
    if len({len(array) for array in arrays.values()}) > 1:
        raise BadRequest("all inputs must have the same number of rows, the first axis")
    return {name: arrays[name] for name in model.inputs}


def describe(servable: Servable, versions: Iterable[str]) -> dict[str, Any]:
    """A model's metadata as the protocol has them."""
    model = servable.model
    return {
        "name": servable.name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [tensor.describe() for tensor in model.inputs.values()],
        "outputs": [tensor.describe() for tensor in model.outputs],
        "properties": dict(model.properties),
    }


def _list(names: Mapping[str, object] | Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
