"""The pages that people read, as Jinja2 templates: the report of a run and the model card.

Text that comes from a run or a checkpoint is text: HTML is escaped everywhere, and Markdown by the filter ``plain``.
A name that a template uses and that it is not given is an error, never an empty place.
"""

import json
from datetime import timedelta
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from rich.filesize import decimal

_PAGES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(["html.jinja"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(name: str, **values: object) -> str:
    """Fill in a template of this folder."""
    return _PAGES.get_template(name).render(values)


def _number(value: float | None, form: str = ".3f") -> str:
    return "n/a" if value is None else format(value, form)


def _plain(value: object) -> str:
    """Text that stays text in a Markdown table."""
    text = json.dumps(str(value), ensure_ascii=False)[1:-1]
    return text.replace("|", "\\|").replace("<", "&lt;").replace('\\"', '"')


def _clock(seconds: float) -> str:
    """A duration to the nearest second."""
    return str(timedelta(seconds=round(seconds)))


def _setting(value: object) -> str:
    """A value of any type as it stands in JSON; a text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value)


_PAGES.filters |= {"bytes": decimal, "clock": _clock, "number": _number, "plain": _plain, "setting": _setting}
