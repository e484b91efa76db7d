"""The networks that a run can name, and the door for a user's own.

Law: ``build`` reads no randomness but torch's global generator, so after ``torch.manual_seed(s)`` every client builds
the same initial model. Each network ends in logits, without a softmax.

Sources: ``fashion-mlp`` and ``cifar-cnn`` are FedSparsify's networks, with its Glorot-uniform weights and zero biases
(arXiv 2204.12430 and its released code; batch norm keeps torch's constants); ``lenet5`` follows LeCun et al. 1998 with
ReLU and max-pooling; ``vgg9`` is the usual nine-layer VGG of the federated literature, with He's weights (arXiv
1502.01852), since without batch norm torch's own are too small for it; ``resnet18`` is He et al., arXiv 1512.03385,
with the 3x3 stem for small images.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor, nn

from edge_client.learning.data import import_function
from protocol.errors import ConfigError

Shape = tuple[int, ...]


def names() -> tuple[str, ...]:
    """The networks that :func:`build` knows by name, sorted."""
    return tuple(sorted(_NETWORKS))


def build(spec: str, input_shape: Shape, classes: int) -> nn.Module:
    """A new network that takes f32[n, *input_shape] to logits f32[n, classes].

    Args:
        spec: One of :func:`names`, or the import path ``package.module:function`` of a function that is called with
            (input_shape, classes) and returns a module. The import path runs the code that it names.
        input_shape: The shape of one input, channels first.
        classes: The number of classes, at least 2.

    Raises:
        ConfigError: The spec is unknown, or the network cannot take inputs of this shape.
    """
    if not input_shape or min(input_shape) < 1 or classes < 2:
        raise ConfigError(f"no network takes inputs of shape {input_shape} to {classes} classes")
    if spec in _NETWORKS:
        return _NETWORKS[spec](input_shape, classes)
    known = f"known networks: {', '.join(names())}, or package.module:function"
    if ":" not in spec:
        raise ConfigError(f"unknown model {spec!r}; {known}")
    try:
        function = import_function(spec)
    except ImportError as error:
        raise ConfigError(f"model {spec!r}: {error}; {known}") from error
    model = function(input_shape, classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {spec!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _digits_mlp(input_shape: Shape, classes: int) -> nn.Module:
    return _named(_head(prod(input_shape), (128, 64), classes))


def _fashion_mlp(input_shape: Shape, classes: int) -> nn.Module:
    return _start(_named(_head(prod(input_shape), (128, 128), classes)), nn.init.xavier_uniform_)


def _lenet5(input_shape: Shape, classes: int) -> nn.Module:
    channels, height, width = _image("lenet5", input_shape, smallest=12)
    layers = {
        "conv1": nn.Conv2d(channels, 6, 5, padding=2),
        "relu_conv1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5),
        "relu_conv2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
    }
    flat = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return _named(layers | _head(flat, (120, 84), classes))


def _cifar_cnn(input_shape: Shape, classes: int) -> nn.Module:
    channels, height, width = _image("cifar-cnn", input_shape, smallest=8)
    layers = {
        "stage1": _stage(channels, 64, 64),
        "norm1": nn.BatchNorm2d(64),
        "stage2": _stage(64, 128, 128),
        "norm2": nn.BatchNorm2d(128),
        "stage3": _stage(128, 128, 128),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(128 * (height // 8) * (width // 8), 512),
        "relu1": nn.ReLU(),
        "dropout": nn.Dropout(0.2),
        "out": nn.Linear(512, classes),
    }
    return _start(_named(layers), nn.init.xavier_uniform_)


def _vgg9(input_shape: Shape, classes: int) -> nn.Module:
    channels, height, width = _image("vgg9", input_shape, smallest=8)
    layers: dict[str, nn.Module] = {
        "stage1": _stage(channels, 32, 64),
        "stage2": _stage(64, 128, 128),
        "stage3": _stage(128, 256, 256),
    }
    layers |= _head(256 * (height // 8) * (width // 8), (512, 512), classes)
    return _start(_named(layers), nn.init.kaiming_uniform_)


def _resnet18(input_shape: Shape, classes: int) -> nn.Module:
    channels, _, _ = _image("resnet18", input_shape, smallest=8)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        "norm1": nn.BatchNorm2d(64),
        "relu1": nn.ReLU(),
    }
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512), start=1):
        layers[f"stage{stage}"] = nn.Sequential(
            _Residual(inputs, outputs, stride=1 if stage == 1 else 2), _Residual(outputs, outputs, stride=1)
        )
        inputs = outputs
    return _named(layers | {"pool": nn.AdaptiveAvgPool2d(1)} | _head(inputs, (), classes))


class _Residual(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = _named({"conv": projection, "norm": nn.BatchNorm2d(outputs)})

    def forward(self, x: Tensor) -> Tensor:
        """f32[n, inputs, h, w] to f32[n, outputs, ceil(h / stride), ceil(w / stride)]."""
        y = self.relu1(self.norm1(self.conv1(x)))
        result: Tensor = self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x))
        return result


def _named(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _stage(inputs: int, first: int, second: int) -> nn.Sequential:
    """Two 3x3 convolutions that keep the image's size, then a pool that halves it."""
    layers = {
        "conv1": nn.Conv2d(inputs, first, 3, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(first, second, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
    }
    return _named(layers)


def _head(inputs: int, hidden: tuple[int, ...], classes: int) -> dict[str, nn.Module]:
    """Flatten, hidden linear layers with ReLU, and the linear output."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for place, width in enumerate(hidden, start=1):
        layers |= {f"fc{place}": nn.Linear(inputs, width), f"relu{place}": nn.ReLU()}
        inputs = width
    return layers | {"out": nn.Linear(inputs, classes)}


def _image(name: str, input_shape: Shape, smallest: int) -> tuple[int, int, int]:
    """The (channels, height, width) of an image input whose sides are at least ``smallest``."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ConfigError(
            f"{name} takes images of shape (channels, height, width) with sides of {smallest} or more, not inputs of "
            f"shape {input_shape}; use an MLP or your own network by import path"
        )
    channels, height, width = input_shape
    return channels, height, width


def _start(model: nn.Sequential, draw: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """The model, each linear and convolutional layer with weights drawn by ``draw`` and a bias of zeros."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
            draw(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


_NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "cifar-cnn": _cifar_cnn,
    "digits-mlp": _digits_mlp,
    "fashion-mlp": _fashion_mlp,
    "lenet5": _lenet5,
    "resnet18": _resnet18,
    "vgg9": _vgg9,
}
