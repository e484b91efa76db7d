"""How often a model uses each of its parameters on one sample: for a weight, its multiply-accumulates.

Counted by running the model once on zeros. A layer's parameters are used once for every position of its output: H * W
times in a convolution or in the normalisation behind it, once in a linear layer on a flat input; in a transposed
convolution once for every position of its input. Where a layer does not return one tensor, its parameters count once.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from protocol.errors import ConfigError


def uses(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """The uses of each parameter by name, at least 1.

    Raises:
        ConfigError: The model cannot take an input of this shape.
    """
    counts = dict.fromkeys((name for name, _ in model.named_parameters()), 0)
    modes = [(module, module.training) for module in model.modules()]

    def counter(prefix: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen = inputs[0] if isinstance(module, _ConvTransposeNd) else output
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if isinstance(seen, torch.Tensor) and parameter.dim():
                    counts[name] += seen.numel() // len(parameter)

        return count

    handles = [module.register_forward_hook(counter(name)) for name, module in model.named_modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=next((p.dtype for p in model.parameters()), None)))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(f"the model cannot take a batch of inputs of shape {input_shape}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return {name: max(1, count) for name, count in counts.items()}
