"""The plan: everything that all parties of a run must agree on, and its digest.

A plan is read from Flower's run config and never changes during a run: each field stands in ``[tool.flwr.app.config]``
in kebab-case, and what only the method knows in ``[tool.flwr.app.config.options]``, which Flower hands out under dotted
names, ``options.exponent``. Its digest is part of every message; a provisioned client refuses any other.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import isfinite
from typing import Final

from protocol import VERSION
from protocol.errors import ConfigError
from protocol.grid import Grid
from protocol.openings import smallest
from protocol.parameters import COEFFICIENT_BITS, DEGREE, MODULUS, Parameters
from protocol.text import cleaned

Scalar = str | int | float | bool
OptionTable = tuple[tuple[str, Scalar], ...]
"""Names and values, by name."""

GRANULARITIES: Final = ("weight", "filter")
"""What a method can remove: single weights, or whole filters and neurons."""

_OPTIONS: Final = "options"
_LIMIT: Final = 1 << 63
"""Numbers are smaller, and so finite."""
_OPTION_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Plan:
    """The settings of a run that all must share.

    Attributes:
        method: Name of the sparsifier.
        sparsity: S, the share of trainable parameters (of the filters of each layer, where these are what is removed)
            that are zero at the end, in [0, 1); without meaning for a method that has no target.
        granularity: What is removed, ``weight`` or ``filter``.
        rounds: T.
        fraction: The part of the nodes asked each round, in (0, 1].
        min_cohort: The smallest cohort; clients enforce it.
        max_cohort: K, the largest cohort; it sets the radix of a lane.
        colluders: How many clients may work with the aggregator before an update of another is exposed.
        max_share: The largest share of the mean that one client can have, whatever samples it claims, in (0, 1].
        bits: b, bits of the sum's grid.
        model: Name or import path of the network.
        data: Name or import path of the data; a node's own settings may point elsewhere.
        partition: How data that is not a node's own is divided.
        epochs: Local epochs per round.
        batch_size: Samples in one step.
        learning_rate: The step size of SGD.
        momentum: The momentum of SGD, in [0, 1).
        proximal: mu of FedProx's proximal term, 0 or more.
        seed: What the initial model, the partition, the sampling and the training are drawn from.
        deadline: Seconds that each message of a round may take.
        attempts: How many messages of a kind a round may take before it is given up.
        options: What the method is given beyond its defaults. This package knows neither their names nor their ranges;
            the method's class does and refuses what it does not know.

    Raises:
        ConfigError: A value is out of range, an option is no named scalar, or the sums could not be decrypted.
    """

    method: str = "fedsparsify-global"
    sparsity: float = 0.95
    granularity: str = "weight"
    rounds: int = 40
    fraction: float = 1.0
    min_cohort: int = 3
    max_cohort: int = 10
    colluders: int = 1
    max_share: float = 0.5
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
    options: OptionTable = ()

    def __post_init__(self) -> None:
        for name, good, text in (
            ("sparsity", 0 <= self.sparsity < 1, "a fraction in [0, 1)"),
            ("granularity", self.granularity in GRANULARITIES, f"one of {', '.join(GRANULARITIES)}"),
            ("rounds", self.rounds >= 1, "1 or more"),
            ("fraction", 0 < self.fraction <= 1, "a fraction in (0, 1]"),
            ("colluders", self.colluders >= 0, "0 or more"),
            (
                "min_cohort",
                self.min_cohort >= smallest(self.colluders),
                f"{smallest(self.colluders)} (colluders + 2) or more: a smaller sum exposes its members",
            ),
            (
                "max_share",
                1 / max(self.min_cohort, 1) <= self.max_share <= 1,
                "a fraction in [1 / min-cohort, 1]",
            ),
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
        object.__setattr__(self, _OPTIONS, _table(self.options))
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

    def run_seed(self, run: bytes) -> int:
        """The seed of one run: of its initial weights, training and dither, 64 bits.

        It depends on the run's name, so that no two runs of a plan begin from one state or draw the same numbers: who
        was in both could subtract one sum from the other.
        """
        text = self.seed.to_bytes(4, "little") + run
        return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"pruneseal seed").digest(), "little")

    def to_config(self) -> dict[str, Scalar]:
        """The plan as a Flower run config, flat and in kebab-case; a whole number for a real one counts as real."""
        values = {name: (kind, getattr(self, name.replace("-", "_"))) for name, kind in _kinds().items()}
        config: dict[str, Scalar] = {n: float(value) if kind is float else value for n, (kind, value) in values.items()}
        return config | {f"{_OPTIONS}.{name}": value for name, value in self.options}


def plan_from_config(config: Mapping[str, object]) -> Plan:
    """Read a plan from a Flower run config.

    Args:
        config: The options are a table ``options``, as a file has it, or dotted names, as Flower hands them out.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    kinds = _kinds()
    given, prefix = dict(config), f"{_OPTIONS}."
    options = [(key.removeprefix(prefix), given.pop(key)) for key in config if key.startswith(prefix)]
    if isinstance(table := given.get(_OPTIONS), Mapping):
        options += table.items()
        del given[_OPTIONS]
    if unknown := sorted(set(given) - set(kinds)):
        raise ConfigError(
            f"the run config has unknown keys: {cleaned(', '.join(unknown))}; known are {', '.join(kinds)}, "
            f"and the table {_OPTIONS} of the method"
        )
    if missing := sorted(set(kinds) - set(given)):
        raise ConfigError(f"the run config lacks {', '.join(missing)}")
    values: dict[str, object] = {}
    for key, kind in kinds.items():
        value = given[key]
        if isinstance(value, int | float) and not _fits(value):
            raise ConfigError(f"{key} must be a finite number of at most 63 bits")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{key} must be of type {kind.__name__}, not {cleaned(repr(value))}")
        values[key.replace("-", "_")] = value
    return Plan(options=tuple(options), **values)  # type: ignore[arg-type]  # checked above, or by the plan itself


def _kinds() -> dict[str, type]:
    """The types of the fields by their names in a run config."""
    return {field.name.replace("_", "-"): type(field.default) for field in fields(Plan) if field.name != _OPTIONS}


def _table(options: Iterable[tuple[str, Scalar]]) -> OptionTable:
    """The options by name, in the one form that equal tables have: a number without a fraction is whole."""
    table: dict[str, Scalar] = {}
    for name, given in options:
        value = int(given) if isinstance(given, float) and given.is_integer() else given
        if not _OPTION_NAME.fullmatch(name):
            raise ConfigError(f"an option's name is made of a-z, 0-9 and single hyphens; {cleaned(repr(name))} is not")
        if name in table:
            raise ConfigError(f"the option {name} is given twice")
        if not isinstance(value, str | int | float):
            raise ConfigError(
                f"the option {name} must be a text, a number or true or false, not {cleaned(repr(value))}"
            )
        if not isinstance(value, str) and not _fits(value):
            raise ConfigError(f"the option {name} must be a finite number of at most 63 bits")
        table[name] = value
    return tuple(sorted(table.items()))


def _fits(value: float) -> bool:
    """Whether a number can be written and read anywhere: finite, and of at most 63 bits where it is whole."""
    return abs(value) < _LIMIT if isinstance(value, int) else isfinite(value)
