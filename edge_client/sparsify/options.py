"""The options of a method: declared in its class, given by the plan, read as attributes.

::

    class Fading(Sparsifier):
        share = Option(0.1, "The share of the weights that goes in each round.", FRACTION)

Then ``self.share`` is the plan's ``options.share``, or 0.1 where the plan does not give it. The attribute's name in
kebab-case is the option's name everywhere else; the default's type is its type. A subclass inherits the options of its
bases, and declares one anew to change it, most simply with `dataclasses.replace`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, Self, TypeVar, overload

from protocol.errors import ConfigError
from protocol.plan import Plan, Scalar

T = TypeVar("T", bound=Scalar)


@dataclass(frozen=True)
class Range:
    """Which values an option may have.

    Attributes:
        text: What a value must be, such as ``positive``.
        holds: Whether a value of the option's type is that.
    """

    text: str
    holds: Callable[[Any], bool]


ANY: Final = Range("", lambda _: True)
POSITIVE: Final = Range("positive", lambda value: value > 0)
FRACTION: Final = Range("a fraction in [0, 1)", lambda value: 0 <= value < 1)


def at_least(bound: int) -> Range:
    """The bound and all above it."""
    return Range(f"{bound} or more", lambda value: value >= bound)


def above(bound: int) -> Range:
    """All above the bound, without it."""
    return Range(f"above {bound}", lambda value: value > bound)


class HasOptions(Protocol):
    """What reads its options from a plan."""

    options: Mapping[str, Scalar]


@dataclass(eq=False)
class Option(Generic[T]):
    """One option of a method, an attribute of its class.

    Attributes:
        default: What it is where the plan does not give it.
        help: A sentence for those who may set it.
        range: What it may be.
        choices: All that it may be, for a text.
        derived: Computes the default where it follows from the plan; ``default`` then only stands for the type.
        derived_text: What that comes to, in words.
        name: The attribute's name in kebab-case.
    """

    default: T
    help: str
    range: Range = ANY
    choices: tuple[str, ...] = ()
    derived: Callable[[Plan], T] | None = None
    derived_text: str = ""
    name: str = field(default="", init=False)

    @property
    def shown(self) -> str:
        """The default as a user would write it, or in words where it is derived."""
        return self.derived_text or (str(self.default).lower() if isinstance(self.default, bool) else str(self.default))

    @property
    def allowed(self) -> str:
        """What the option may be, as a phrase; empty where that is everything of its type."""
        if isinstance(self.default, bool):
            return "true or false"
        return f"one of {', '.join(self.choices)}" if self.choices else self.range.text

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.name = attribute.replace("_", "-")

    @overload
    def __get__(self, method: None, owner: type) -> Self: ...
    @overload
    def __get__(self, method: HasOptions, owner: type) -> T: ...
    def __get__(self, method: HasOptions | None, owner: type) -> Any:
        """The option itself from the class, its value from a method."""
        return self if method is None else method.options[self.name]

    def value(self, plan: Plan, given: Scalar | None) -> Scalar:
        """What the option is under a plan that gives this, or nothing.

        Raises:
            ConfigError: It has the wrong type, or is none of what the option may be.
        """
        if given is None:
            return self.default if self.derived is None else self.derived(plan)
        kind = type(self.default)
        value = float(given) if kind is float and type(given) is int else given
        if type(value) is not kind:
            raise ConfigError(f"{self.name} must be of type {kind.__name__}, not {given!r}")
        if self.choices and value not in self.choices:
            raise ConfigError(f"there is no {self.name} {value!r}; known are {', '.join(self.choices)}")
        if not self.range.holds(value):
            raise ConfigError(f"{self.name} must be {self.range.text}, not {value}")
        return value


def declared(kind: type) -> dict[str, Option[Any]]:
    """The options of a class and its bases by name, those of the first base first."""
    found: dict[str, Option[Any]] = {}
    for owner in reversed(kind.__mro__):
        found |= {option.name: option for option in vars(owner).values() if isinstance(option, Option)}
    return found


def read(kind: type, method: str, plan: Plan) -> dict[str, Scalar]:
    """The value of every option of a class under a plan, by name.

    Args:
        kind: The class.
        method: What to call it.
        plan: Gives what differs from the defaults.

    Raises:
        ConfigError: The plan gives an option that the class does not have, or one that it cannot be.
    """
    known, given = declared(kind), dict(plan.options)
    if unknown := sorted(given.keys() - known.keys()):
        has = f"its options are {', '.join(known)}" if known else "it has none"
        raise ConfigError(f"{method} has no option {', '.join(unknown)}; {has}")
    return {name: option.value(plan, given.get(name)) for name, option in known.items()}
