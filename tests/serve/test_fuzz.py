"""schemathesis against the REST face, by the description that it gives of itself."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

import serve
from serve.tensors import DATATYPES
from tests.serve.serving import Server

DOCUMENT = schemathesis.openapi.from_path(Path(serve.__file__).with_name("openapi.yaml")).raw_schema
OPERATIONS = [
    (path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in ("get", "post")
]
# No wrong request can be made of a path alone: every text is a model's name.
CASES = [
    (path, method, mode)
    for path, method in OPERATIONS
    for mode in schemathesis.GenerationMode
    if method == "post" or mode == schemathesis.GenerationMode.POSITIVE
]
Case = schemathesis.Case[Any]


@pytest.fixture(scope="module")
def schema(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"http://{server.http}/openapi.yaml")


def test_every_path_is_fuzzed() -> None:
    assert len(OPERATIONS) == 10


def test_the_description_has_every_datatype() -> None:
    assert DOCUMENT["components"]["schemas"]["Datatype"]["enum"] == [name for name, _ in DATATYPES.values()]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_every_answer_is_one_that_the_description_has(schema: Any, path: str, method: str, mode: Any) -> None:
    operation = schema[path][method.upper()]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=30 if method == "post" else 5, deadline=None, suppress_health_check=[*HealthCheck], database=None
    )
    def fuzz(case: Case) -> None:
        case.call_and_validate()

    fuzz()
