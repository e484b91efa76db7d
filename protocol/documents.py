"""The JSON files that we write for ourselves, each a frozen class with one reader and one writer.

Law: ``C.parse(c.to_json(), …) == c``. A file names its format and its version, ``major.minor``. A newer minor version
only adds keys: those that are not known here are kept, at any depth, and written back, under the version that they came
with. A newer major version, a missing key and a value of another type or beyond its bounds are refused by an error that
names the file and the key; so is whatever else a damaged or hostile file can hold: too many bytes, too deep a nesting,
NaN, an integer without end.

pydantic does the work. Flower depends on it, so every image that reads these files holds it already; its parser bounds
depth and digits, and of the libraries at hand (msgspec, cattrs, dataclasses alone) it is the only one that carries
unknown keys from reading to writing. Its models do, its dataclasses do not: hence models, frozen as a dataclass is.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from protocol.errors import CheckpointError, PruneSealError
from protocol.files import replace_file

MOST_BYTES: Final = 1 << 24
"""Of one document."""

_T = TypeVar("_T")
_MOST_COUNT: Final = 2**63 - 1
_MOST_SECONDS: Final = 1e11
_SHOWN: Final = 200
_READING: Final = "reading"
_OTHER: Final = "other_format"


def _until_one_fails(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validate a JSON object's values one after another; pydantic itself notes what is wrong with each of them."""
    if not isinstance(value, dict):
        return validate(value)
    return {name: one for key, given in value.items() for name, one in validate({key: given}).items()}


Items = Annotated[tuple[_T, ...], Strict(False), FailFast()]  # a JSON array is a list
"""Any number of values of one type. The first wrong one is told of, and no memory is spent on the others."""
Table = Annotated[Mapping[str, _T], WrapValidator(_until_one_fails)]
"""Any number of values of one type by name, likewise."""
Count = Annotated[int, Field(ge=0, le=_MOST_COUNT)]
"""A number of things or bytes; it fits into 63 bits."""
Seconds = Annotated[float, Field(ge=0, le=_MOST_SECONDS)]
"""A duration, or a time since 1970; three thousand years at most."""


class Part(BaseModel):
    """A part of a document. Its numbers are finite, and an integer is no text, no boolean and no fraction."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    refusal: ClassVar[type[PruneSealError]] = CheckpointError
    """What is raised where one cannot be read."""

    @classmethod
    def parse(cls, data: bytes, where: object) -> Self:
        """Read one from JSON.

        Args:
            data: UTF-8.
            where: What holds it, for the error.

        Raises:
            PruneSealError: It is damaged or of another format or version; the type is ``refusal``.
        """
        if len(data) > MOST_BYTES:
            raise cls.refusal(f"{where} is damaged: it is larger than {MOST_BYTES} bytes")
        try:
            return cls.model_validate(from_json(data, allow_inf_nan=False), context=_READING)
        except ValidationError as error:
            raise cls.refusal(f"{where} {_told(error.errors(include_url=False)[0])}") from error
        except ValueError as error:
            raise cls.refusal(f"{where} is damaged: it is not JSON: {error}") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            FileNotFoundError: There is none.
            PruneSealError: It cannot be used; the type is ``refusal``.
        """
        try:
            with path.open("rb") as file:
                data = file.read(min(os.fstat(file.fileno()).st_size, MOST_BYTES) + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise cls.refusal(f"{path} cannot be read: {error.strerror}") from error
        return cls.parse(data, path)

    def to_json(self, indent: int | None = None) -> bytes:
        """It as JSON, in one line unless it is indented."""
        return self.model_dump_json(indent=indent).encode()

    def write(self, path: Path) -> None:
        """Put it, for people to read as well, in the place of a file.

        Raises:
            OSError: The file cannot be written.
        """
        replace_file(path, self.to_json(indent=1) + b"\n")


class Document(Part):
    """What a whole file, or a line of one, holds. A subclass gives its format and its version as defaults."""

    format: str
    version: str

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, data: Any, info: ValidationInfo) -> Any:
        """Before anything else, where it is read and not made here, compare format and version."""
        if info.context is not _READING or not isinstance(data, dict):
            return data
        format_, major = cls.model_fields["format"].default, cls.model_fields["version"].default.partition(".")[0]
        found, version = (str(data.get(name, "none"))[:_SHOWN] for name in ("format", "version"))
        if found != format_:
            told = {"found": found, "wanted": format_}
            raise PydanticCustomError(_OTHER, "is damaged: its format is {found}, not {wanted}", told)
        if version.partition(".")[0] != major:
            text = "has version {found}, not {wanted}.x: use the PruneSeal that wrote it"
            raise PydanticCustomError(_OTHER, text, {"found": version, "wanted": major})
        return data


def _told(error: ErrorDetails) -> str:
    """The first thing that is wrong, with its key."""
    if error["type"] == _OTHER:
        return error["msg"]
    key = ".".join(str(part) for part in error["loc"])[:_SHOWN]
    if error["type"] == "missing":
        return f"is damaged: {key!r} is missing"
    return f"is damaged: {key!r}: {error['msg'][0].lower()}{error['msg'][1:]}" if key else "is damaged: it is no object"
