"""schemathesis against the REST face, by the description that it gives of itself."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.export.serve.serving import Server


@pytest.fixture
def api(server: Server) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"http://{server.http}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
def test_every_answer_is_one_that_the_description_has(case: schemathesis.Case) -> None:
    case.call_and_validate()
