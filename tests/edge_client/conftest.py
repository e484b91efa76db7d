"""Shared by the tests of the client."""

import pytest

from tests.edge_client.federation import Federation, federation, tiny_plan


@pytest.fixture
def fed() -> Federation:
    """Four nodes and a plan that trains in milliseconds."""
    return federation(tiny_plan())
