"""Every scenario runs in each flavour."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.client.flavours import Scenario, play


@pytest.fixture(params=["blocking", "trio", "asyncio"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    for variable in ("P2PNODE_API", "P2PNODE_API_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    return partial(play, request.param)
