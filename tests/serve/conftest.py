"""One server that most tests of the service share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.serving import Server, labelled, linear, save, serving


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of one version and one of two."""
    root = tmp_path_factory.mktemp("models")
    save(labelled(), root / "linear" / "model.onnx")
    for version in (1, 2, 10):
        save(linear(seed=version), root / "versioned" / str(version) / "model.onnx")
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """A server that no test may change."""
    with serving(repository, "--max-request-bytes", "65536", "--queue", "64", "--max-batch", "16") as running:
        yield running
