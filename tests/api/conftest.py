"""What the tests of the API share."""

from __future__ import annotations

import pytest

from tests.api.fake import FakeSidecar


@pytest.fixture
async def sidecar() -> FakeSidecar:
    return FakeSidecar()
