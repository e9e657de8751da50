"""Fixtures: a server of each build, with JetStream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.carriers.nats.server import BUILDS, Build, NatsServer


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Build:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def server(tmp_path: Path, build: Build) -> Iterator[NatsServer]:
    """Running, with JetStream."""
    with NatsServer(tmp_path / "server", build=build) as server:
        yield server.start()
