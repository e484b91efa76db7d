"""The models of a folder, and what changes in it while they are served.

One file is one model. A folder that holds ``export.json`` or ``model.onnx`` is one model as well; any other holds
models, each such a folder or a folder of versions, whose names are numbers::

    FILE.onnx
    DIR/{export.json|model.onnx}
    DIR/<model>/{export.json|model.onnx}
    DIR/<model>/<version>/{export.json|model.onnx}

Without ``export.json``, which recommends a file, ``model.onnx`` is served. Law: a version that is loaded answers until
another file has taken its place and has loaded, or until its files are gone; requests that it has taken it answers
even then.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from protocol.errors import ModelError, UnknownModel
from serve.batcher import Batcher
from serve.model import Model

LOG = logging.getLogger(__name__)

EXPORT_FILE: Final = "export.json"
MODEL_FILE: Final = "model.onnx"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_FIRST: Final = "1"
_EXPORT_BYTES: Final = 1 << 20

Key = tuple[str, str]
"""A model's name and version."""


@dataclass(frozen=True)
class Servable:
    """A version of a model that answers requests."""

    name: str
    version: str
    model: Model
    batcher: Batcher


class ModelObserver(Protocol):
    """Who is told of what becomes of models."""

    def loaded(self, key: Key) -> None:
        """A version serves from now on."""

    def refused(self, key: Key) -> None:
        """A version could not be loaded."""

    def removed(self, key: Key) -> None:
        """A version is gone."""


def scan(root: Path) -> dict[Key, Path]:
    """The versions that a folder or file holds, and where: a file, or a folder that ``model_file`` understands.

    Raises:
        ModelError: It cannot be read, or there is nothing in it.
    """
    try:
        if root.is_file():
            return {(_named(root.stem), _FIRST): root}
        if _is_model(root):
            return {(_named(root.resolve().name), _FIRST): root}
        found: dict[Key, Path] = {}
        for folder in _folders(root, _NAME):
            if _is_model(folder):
                found[folder.name, _FIRST] = folder
            else:
                found |= {(folder.name, v.name): v for v in _folders(folder, _VERSION) if _is_model(v)}
    except OSError as error:
        raise ModelError(f"{root} cannot be read: {error.strerror}") from error
    if not found:
        raise ModelError(
            f"{root} holds no model: give an ONNX file, or a folder with {EXPORT_FILE} or {MODEL_FILE}, or a folder of "
            "<model>/ or <model>/<version>/ with one of them"
        )
    return found


def model_file(place: Path) -> Path:
    """The ONNX file that is served of a place.

    Raises:
        ModelError: ``export.json`` cannot be read or recommends nothing beside it.
    """
    if place.is_file():
        return place
    described = place / EXPORT_FILE
    if not described.exists():
        return place / MODEL_FILE
    try:
        if described.stat().st_size > _EXPORT_BYTES:
            raise ModelError(f"{described} is larger than {_EXPORT_BYTES} bytes")
        name = json.loads(described.read_bytes())["recommended"]
    except OSError as error:
        raise ModelError(f"{described} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{described} does not say which file it recommends; export again") from error
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ModelError(f"{described} recommends {str(name)[:100]!r}, which is not the name of a file beside it")
    return place / name


class Repository:
    """The versions that are served now."""

    def __init__(self, root: Path, load: Callable[[Key, Path], Servable], observer: ModelObserver) -> None:
        """Serve nothing yet.

        Args:
            root: A file or folder, as ``scan`` takes it.
            load: Makes a version from an ONNX file, in a thread; raises ``ModelError``.
            observer: Is told of every change.
        """
        self._root, self._load, self._observer = root, load, observer
        self._served: dict[str, dict[str, Servable]] = {}
        self._tried: dict[Key, object] = {}
        self._seen: dict[Key, object] = {}
        self._trouble = ""

    def __iter__(self) -> Iterator[Servable]:
        """Every version, by name and number."""
        for name in sorted(self._served):
            versions = self._served[name]
            yield from (versions[version] for version in sorted(versions, key=int))

    def get(self, name: str, version: str = "") -> Servable:
        """A version of a model; without a number its newest.

        Raises:
            UnknownModel: It is not served.
        """
        versions = self.versions(name)
        found = versions.get(version or next(reversed(versions)))
        if found is None:
            raise UnknownModel(f"{name!r} is served in the versions {', '.join(versions)} and in no other")
        return found

    def versions(self, name: str) -> dict[str, Servable]:
        """The versions of a model, from the oldest to the newest; never empty.

        Raises:
            UnknownModel: It is not served.
        """
        versions = self._served.get(name)
        if not versions:
            raise UnknownModel(f"no such model; served are: {', '.join(sorted(self._served))}")
        return versions

    async def start(self) -> None:
        """Load everything.

        Raises:
            ModelError: Something cannot be loaded.
        """
        for key, place in scan(self._root).items():
            self._tried[key] = self._seen[key] = _stamp(place)
            self._put(key, await asyncio.to_thread(self._loaded, key, place))

    async def watch(self, interval: float) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.refresh()

    async def refresh(self) -> None:
        """Load what is new, replace what has changed, drop what is gone; what fails is logged and changes nothing.

        A change is taken up when a second look finds the files as the first did, so that a file being copied is not
        read half.
        """
        try:
            found = await asyncio.to_thread(scan, self._root)
            stamps = {key: await asyncio.to_thread(_stamp, place) for key, place in found.items()}
        except (ModelError, OSError) as error:
            if str(error) != self._trouble:
                LOG.warning("the models cannot be read; all stay as they are", extra={"reason": str(error)})
            self._trouble = str(error)
            return
        self._trouble = ""
        seen, self._seen = self._seen, stamps
        for key in [key for key in self._tried if key not in found and key not in seen]:
            del self._tried[key]
            self._drop(key)
        for key, place in found.items():
            if stamps[key] in (self._tried.get(key), None) or stamps[key] != seen.get(key):
                continue
            self._tried[key] = stamps[key]
            try:
                servable = await asyncio.to_thread(self._loaded, key, place)
            except ModelError as error:
                details = {"model": key[0], "version": key[1], "reason": str(error)}
                LOG.error("a model is not loaded", extra=details)  # noqa: TRY400  # the reason is for the operator
                self._observer.refused(key)
            else:
                self._put(key, servable)

    def _loaded(self, key: Key, place: Path) -> Servable:
        return self._load(key, model_file(place))

    def _put(self, key: Key, servable: Servable) -> None:
        name, version = key
        versions = {**self._served.get(name, {}), version: servable}
        self._served[name] = {number: versions[number] for number in sorted(versions, key=int)}
        LOG.info("a model is loaded", extra={"model": name, "version": version})
        self._observer.loaded(key)

    def _drop(self, key: Key) -> None:
        name, version = key
        if self._served.get(name, {}).pop(version, None) is None:
            return
        if not self._served[name]:
            del self._served[name]
        LOG.info("a model is removed", extra={"model": name, "version": version})
        self._observer.removed(key)


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} cannot be a model's name; use letters, digits, dots, hyphens and underscores, 100 at most"
        )
    return name


def _is_model(folder: Path) -> bool:
    return (folder / EXPORT_FILE).is_file() or (folder / MODEL_FILE).is_file()


def _folders(root: Path, names: re.Pattern[str]) -> list[Path]:
    """The folders of a folder whose names fit."""
    return sorted(path for path in root.iterdir() if names.fullmatch(path.name) and path.is_dir())


def _stamp(place: Path) -> object:
    """What changes whenever a file of the place does."""
    files = [place] if place.is_file() else sorted({*place.glob("*.onnx"), *place.glob(EXPORT_FILE)})
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
