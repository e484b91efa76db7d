"""A network that takes raw values, such as pixels from 0 to 255, instead of the normalised ones that it learnt from.

Law: the file that ``Scaling.into_file`` makes computes what the module of ``Scaling.into_module`` computes:
``model((raw - shift) / scale)``, the same two operations on the same float32 numbers in the same order. So whoever runs
the file needs to know nothing of how the training data were prepared.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Final, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.helper import make_node
from torch import nn

from export.convert import INPUT
from export.graph import parse
from protocol.errors import ExportError

_SCALED: Final = f"{INPUT}.scaled"
_SHIFTED: Final = f"{INPUT}.shifted"


@dataclass(frozen=True)
class Scaling:
    """How raw values become a network's inputs: (raw - shift) / scale.

    Raises:
        ExportError: The scale is not positive, or a number is not finite.
    """

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.scale) and self.scale > 0 and isfinite(self.shift)):
            raise ExportError(f"inputs cannot be scaled by {self.scale} and shifted by {self.shift}; give finite ones")

    def into_module(self, model: nn.Module) -> nn.Module:
        """The network that takes raw values; it shares the weights and the mode of ``model``."""
        return _Scaled(model, self)

    def into_file(self, onnx_bytes: bytes) -> bytes:
        """The file that takes raw values.

        Args:
            onnx_bytes: What ``convert`` returned.

        Raises:
            ExportError: The bytes are not a valid self-contained model.
        """
        model = parse(onnx_bytes)
        graph, nodes, name = model.graph, [], INPUT
        for operator, number, neutral, result in (
            ("Sub", self.shift, 0.0, _SHIFTED),
            ("Div", self.scale, 1.0, _SCALED),
        ):
            if number != neutral:
                constant = numpy_helper.from_array(np.array(number, np.float32), f"{result}.by")
                graph.initializer.append(constant)
                nodes.append(make_node(operator, [name, constant.name], [result], name=result))
                name = result
        for node in graph.node:
            node.input[:] = [name if read == INPUT else read for read in node.input]
        rest = [*graph.node]
        del graph.node[:]
        graph.node.extend([*nodes, *rest])
        data = cast("bytes", model.SerializeToString(deterministic=True))
        onnx.checker.check_model(data, full_check=True)
        return data


class _Scaled(nn.Module):
    def __init__(self, model: nn.Module, scaling: Scaling) -> None:
        super().__init__()
        self.model, self.shift, self.scale = model, np.float32(scaling.shift), np.float32(scaling.scale)
        self.train(model.training)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """f32[n, *input_shape] to f32[n, classes]."""
        result: torch.Tensor = self.model((raw - float(self.shift)) / float(self.scale))
        return result
