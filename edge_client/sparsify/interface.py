"""What a method says, and nothing else: which tensors travel, what is trained, what survives, what a sum means.

A method is one subclass of `Sparsifier`, about a hundred lines with the paper's equations by number. It is a set of
pure functions of the plan; its only state is the `GlobalState` that clients derive from the same decrypted integers.
CONTRIBUTING.md has the steps by which one is added.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from edge_client.sparsify.options import Option, declared, read
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector
from protocol.plan import Plan, Scalar

NO_VOTES: Mask = np.zeros(0, np.bool_)


@dataclass(frozen=True, eq=False)
class GlobalState:
    """What all clients hold in common after a round.

    Attributes:
        round: The last completed round; 0 before the first.
        vector: The travelling tensors of the global model, float32[P]; zero off the mask.
        mask: The positions that travel in the next round, bool[P].
    """

    round: int
    vector: Vector
    mask: Mask


class Sparsifier(ABC):
    """One method. Its options are attributes of the class, each an `Option`.

    Args:
        plan: The settings of the run.

    Attributes:
        plan: The same.
        options: The value of every option of the method, by name.

    Raises:
        ConfigError: The plan gives an option that the method does not have, or one that is out of range.
    """

    name: ClassVar[str]
    granularities: ClassVar[tuple[str, ...]] = ("weight",)
    """What the method can remove: single weights, whole filters."""
    has_target: ClassVar[bool] = True
    """Whether the method ends at the plan's sparsity; where not, that has no meaning."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.options: Mapping[str, Scalar] = read(type(self), self.name, plan)

    @classmethod
    def declared(cls) -> dict[str, Option[Any]]:
        """The options that the method has, by name."""
        return declared(cls)

    def wear(self, model: nn.Module) -> nn.Module:
        """The model, changed in place, as it is trained: by default as it is."""
        return model

    def notes(self) -> tuple[str, ...]:
        """What the operator should know about the worn model under this method; by default nothing."""
        return ()

    def shed(self, model: nn.Module) -> nn.Module:
        """The inverse of :meth:`wear`, in place: a plain model that computes what the worn one does."""
        for module in model.modules():
            if parametrize.is_parametrized(module):
                for name in sorted(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        return model

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """What is added to the loss of every step, a scalar; by default nothing."""
        return None

    def travelling(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        """The tensors that clients average, by name: by default every floating-point parameter and buffer."""
        return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}

    def personal(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        """The tensors that stay on this node and are kept from round to round; by default none."""
        return {}

    def absorb(self, model: nn.Module, shared: Mapping[str, torch.Tensor]) -> None:
        """Take the averaged tensors into the model.

        Args:
            model: The model that :meth:`wear` returned, with its personal tensors restored.
            shared: The new averages.
        """
        own = self.travelling(model)
        with torch.no_grad():
            for name, tensor in shared.items():
                own[name].copy_(tensor)

    def first_mask(self, vector: Vector, layout: Layout) -> Mask:
        """The positions that travel in round 1, bool[P], from the initial model, float32[P]; by default all."""
        return np.ones(layout.size, np.bool_)

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        """What a client gives to the sum: its values, float32[P], and one vote per position, bool[P] (bool[0]: none).

        Votes travel encrypted like the values. Whether there are any must follow from the plan and the round alone.

        Args:
            trained: The client's trained tensors, float32[P], zero off the state's mask.
            layout: Their layout.
            state: What the round began with.
            gradient: Computes the gradient of the client's loss at the state, float32[P], on one batch of its rows.
        """
        return trained, NO_VOTES

    def weight(self, samples: int) -> int:
        """What a client's values count for in the mean: by default as many as its training samples."""
        return samples

    def alive(self, layout: Layout, state: GlobalState) -> Mask:
        """The positions that the global model uses, bool[P]: by default those that travel."""
        return state.mask

    def sizes(self, model: nn.Module, layout: Layout, state: GlobalState) -> tuple[int, int]:
        """How many trainable positions a client's model has, and how many of them are alive."""
        return int(layout.prunable.sum()), int((self.alive(layout, state) & layout.prunable).sum())

    @abstractmethod
    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """The mask after round ``state.round``, bool[P]: a pure function, the same on every client.

        Args:
            mean: The decrypted mean, float32[P], zero where nothing travelled.
            votes: The decrypted votes for each position, i64[P]; all zero where the method has none.
            clients: How many clients the sum holds.
            layout: The layout of the vector.
            state: The round just completed and the mask that it travelled under; its vector is the mean.
        """


def plain_name(name: str) -> str:
    """The name that a worn model's tensor has in the plain one."""
    return name.replace(".parametrizations.", ".").removesuffix(".original")
