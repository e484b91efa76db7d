"""What both faces of the service do: find the model, fit the tensors, run, name the outputs.

A request waits as the arrays that were made of it: a face drops what it has parsed before it waits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from protocol.errors import BadRequest
from serve.model import Model
from serve.repository import Servable
from serve.tensors import Array, Tensor, from_bytes, from_json, from_numbers

EXTENSIONS: Final = ("binary_tensor_data",)
PLATFORM: Final = "onnxruntime_onnx"


@dataclass(frozen=True)
class Given:
    """An input tensor as a request has it.

    Attributes:
        name: Of the model's input.
        datatype: The protocol's name of the type.
        shape: A list of integers, or what the client sent instead.
        data: Bytes, JSON that is not parsed yet, or numbers.
    """

    name: str
    datatype: str
    shape: object
    data: bytes | memoryview | msgspec.Raw | Sequence[int | float]


Output = tuple[Tensor, Array]


@dataclass(frozen=True)
class Fitted:
    """A request that a model can be asked.

    Attributes:
        servable: The model.
        inputs: The arrays of all inputs, in the model's order.
        places: Which of the model's outputs are wanted.
    """

    servable: Servable
    inputs: Mapping[str, Array]
    places: Sequence[int]


def fit(servable: Servable, given: Iterable[Given], wanted: Sequence[str]) -> Fitted:
    """Hold a request against the model that it is for.

    Args:
        servable: The model.
        given: The inputs.
        wanted: Names of outputs; none for all of them.

    Raises:
        BadRequest: The inputs or names do not fit the model.
    """
    places = _places(servable.model, wanted)
    return Fitted(servable, _inputs(servable.model, given), places)


async def infer(asked: Fitted) -> list[Output]:
    """The outputs that are wanted.

    Raises:
        TooLarge, Overloaded, InferenceError: As ``Batcher.infer`` has it.
    """
    outputs = await asked.servable.batcher.infer(asked.inputs)
    return [(asked.servable.model.outputs[place], outputs[place]) for place in asked.places]


def _places(model: Model, wanted: Sequence[str]) -> list[int]:
    """The places of these outputs among the model's."""
    places = {tensor.name: place for place, tensor in enumerate(model.outputs)}
    found: dict[str, int] = {}
    for name in wanted:
        if name not in places:
            raise BadRequest(f"the model has no output {name[:100]!r}; it has {_list(places)}")
        if name in found:
            raise BadRequest(f"the output {name!r} is asked for twice")
        found[name] = places[name]
    return [*(found or places).values()]


def _inputs(model: Model, given: Iterable[Given]) -> dict[str, Array]:
    """The arrays of all inputs, in the model's order."""
    arrays: dict[str, Array] = {}
    for one in given:
        tensor = model.inputs.get(one.name)
        if tensor is None:
            raise BadRequest(f"the model has no input {one.name[:100]!r}; it has {_list(model.inputs)}")
        if tensor.name in arrays:
            raise BadRequest(f"the input {tensor.name!r} is given twice")
        if one.datatype != tensor.datatype:
            raise BadRequest(f"{tensor.name!r} takes {tensor.datatype}, not {one.datatype[:100]!r}")
        shape = tensor.fitting(one.shape)
        if isinstance(one.data, bytes | memoryview):
            arrays[tensor.name] = from_bytes(tensor, shape, one.data)
        elif isinstance(one.data, msgspec.Raw):
            arrays[tensor.name] = from_json(tensor, shape, memoryview(one.data))
        else:
            arrays[tensor.name] = from_numbers(tensor, shape, one.data)
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
