"""The plan: everything that all parties of a run must agree on, and its digest.

A plan is read from Flower's run config (``[tool.flwr.app.config]``, where each field stands in kebab-case) and never
changes during a run. Its digest is part of every message; a provisioned client refuses any other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final

from protocol import VERSION
from protocol.cohort import SMALLEST
from protocol.errors import ConfigError
from protocol.grid import Grid
from protocol.parameters import COEFFICIENT_BITS, DEGREE, MODULUS, Parameters

Scalar = str | int | float | bool

GRANULARITIES: Final = ("weight", "filter")
"""What a method can remove: single weights, or whole filters and neurons."""


@dataclass(frozen=True)
class Plan:
    """The settings of a run that all must share.

    Attributes:
        method: Name of the sparsifier.
        sparsity: S, the share of trainable parameters (of the filters of each layer, where these are what is removed)
            that are zero at the end, in [0, 1).
        granularity: What is removed, ``weight`` or ``filter``.
        exponent: n of the cubic schedule (FedSparsify uses 3).
        first_prune: t0, the last round without pruning.
        frequency: F, prune every F rounds.
        allocation: How the survivors are shared out over the tensors: global, uniform, erk or macs.
        layer_floor: The share of every tensor that always stays, in [0, 1).
        strict_majority: fedsparsify-local keeps what more than half of the clients keep, not what half of them do.
        start_sparsity: The sparsity that sparsyfed begins with, or its target where that is lower, in [0, 1).
        dense_first: sparsyfed does not prune the first layer.
        powerprop: beta of powerpropagation, 1 or more; 1 trains the weights as they are.
        threshold_penalty: The weight of spafl's regulariser.
        threshold_estimator: The gradient of spafl's step function: identity or clipped.
        rounds: T.
        fraction: The part of the nodes asked each round, in (0, 1].
        min_cohort: The smallest cohort; clients enforce it.
        max_cohort: K, the largest cohort; it sets the radix of a lane.
        bits: b, bits of the sum's grid.
        model: Name or import path of the network.
        data: Name or import path of the data; a node's own settings may point elsewhere.
        partition: How data that is not a node's own is divided.
        epochs: Local epochs per round.
        batch_size: Samples in one step.
        learning_rate: Of SGD.
        momentum: Of SGD.
        proximal: mu of FedProx's proximal term, 0 or more.
        seed: Of the initial model, the partition, the sampling and the training.
        deadline: Seconds that each message of a round may take.
        attempts: How many messages of a kind a round may take before it is given up.

    Raises:
        ConfigError: A value is out of range, or the sums could not be decrypted.
    """

    method: str = "fedsparsify-global"
    sparsity: float = 0.95
    granularity: str = "weight"
    exponent: float = 3.0
    first_prune: int = 1
    frequency: int = 1
    allocation: str = "global"
    layer_floor: float = 0.0
    strict_majority: bool = False
    start_sparsity: float = 0.5
    dense_first: bool = False
    powerprop: float = 1.0
    threshold_penalty: float = 0.002
    threshold_estimator: str = "identity"
    rounds: int = 40
    fraction: float = 1.0
    min_cohort: int = 3
    max_cohort: int = 10
    bits: int = 16
    model: str = "digits-mlp"
    data: str = "digits"
    partition: str = "iid"
    epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 0.1
    momentum: float = 0.0
    proximal: float = 0.0
    seed: int = 1990
    deadline: float = 600.0
    attempts: int = 10

    def __post_init__(self) -> None:
        for name, good, text in (
            ("sparsity", 0 <= self.sparsity < 1, "a fraction in [0, 1)"),
            ("granularity", self.granularity in GRANULARITIES, f"one of {', '.join(GRANULARITIES)}"),
            ("exponent", self.exponent > 0, "positive"),
            ("first_prune", self.first_prune >= 0, "0 or more"),
            ("frequency", self.frequency >= 1, "1 or more"),
            ("layer_floor", 0 <= self.layer_floor < 1, "a fraction in [0, 1)"),
            ("start_sparsity", 0 <= self.start_sparsity < 1, "a fraction in [0, 1)"),
            ("powerprop", self.powerprop >= 1, "1 or more"),
            ("threshold_penalty", self.threshold_penalty >= 0, "0 or more"),
            ("rounds", self.rounds >= 1, "1 or more"),
            ("fraction", 0 < self.fraction <= 1, "a fraction in (0, 1]"),
            ("min_cohort", self.min_cohort >= SMALLEST, f"{SMALLEST} or more: a smaller sum exposes its members"),
            ("max_cohort", self.max_cohort >= self.min_cohort, "at least min-cohort"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("proximal", self.proximal >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 1 << 32, "in [0, 2^32)"),
            ("deadline", self.deadline > 0, "positive"),
            ("attempts", self.attempts >= 1, "1 or more"),
        ):
            if not good:
                raise ConfigError(f"{name.replace('_', '-')} must be {text}, not {getattr(self, name)}")
        _ = self.parameters.fields  # the headroom is proved here, before anybody trains

    @cached_property
    def parameters(self) -> Parameters:
        """The parameters of encryption that follow from the bits and the largest cohort."""
        return Parameters(Grid(self.bits, self.max_cohort))

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name this plan, the protocol version and the parameters of encryption."""
        p = self.parameters
        scheme = [VERSION, DEGREE, MODULUS, COEFFICIENT_BITS, p.plain_modulus, p.fields, p.drop_up, p.drop_down]
        text = json.dumps({"plan": self.to_config(), "scheme": scheme}, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=32, person=b"pruneseal plan").digest()

    def to_config(self) -> dict[str, Scalar]:
        """The plan as a Flower run config, in kebab-case; a whole number for a real one counts as real."""
        values = {field.name.replace("_", "-"): (field.type, getattr(self, field.name)) for field in fields(self)}
        return {name: float(value) if kind is float else value for name, (kind, value) in values.items()}


def plan_from_config(config: Mapping[str, object]) -> Plan:
    """Read a plan from a Flower run config.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    kinds = {field.name.replace("_", "-"): type(field.default) for field in fields(Plan)}
    if unknown := sorted(set(config) - set(kinds)):
        raise ConfigError(f"the run config has unknown keys: {', '.join(unknown)}; known are {', '.join(kinds)}")
    if missing := sorted(set(kinds) - set(config)):
        raise ConfigError(f"the run config lacks {', '.join(missing)}")
    values: dict[str, object] = {}
    for key, kind in kinds.items():
        value = config[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{key} must be of type {kind.__name__}, not {value!r}")
        values[key.replace("-", "_")] = value
    return Plan(**values)  # type: ignore[arg-type]  # each value was just checked against its field's type
