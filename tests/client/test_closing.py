"""A client that is closed while it is at work: its subscriptions end, its calls say why they do not come about."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode.client import AsyncClient, Client
from p2pnode.errors import CallerError
from tests.client.server import Request, answer, serving, stream_head

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

PATIENCE_SECONDS = 30.0


def breaks(_request: Request) -> Iterator[bytes]:
    """A sidecar that ends every stream as soon as it began."""
    yield stream_head()


def is_busy(_request: Request) -> Iterator[bytes]:
    yield answer(503, {"detail": "not now", "reason": "starting"})


def closed_while(call: Callable[[], Any], client: Client, until: Callable[[], object]) -> Future[Any]:
    """What becomes of a call of another thread when the client is closed in the middle of it."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(call)
        until()
        client.close()
        result.exception(PATIENCE_SECONDS)
    return result


@pytest.mark.parametrize("attempts", range(1, 6))
def test_a_subscription_that_is_reconnecting_ends_when_another_thread_closes_the_client(
    tmp_path: Path, attempts: int
) -> None:
    with serving(tmp_path, breaks) as server:
        client = Client(server.api)
        result = closed_while(
            lambda: list(client.subscribe("t")),
            client,
            lambda: server.wait_for(lambda: len(server.requests) >= attempts),
        )
        assert result.result() == []


def test_a_call_to_nobody_ends_when_the_client_is_closed(tmp_path: Path) -> None:
    client = Client(f"unix:{tmp_path / 'nobody.sock'}", timeout=24 * 3600.0)
    began = threading.Event()

    def publish() -> None:
        began.set()
        client.publish("t", {})

    error = closed_while(publish, client, lambda: began.wait(PATIENCE_SECONDS)).exception()
    assert isinstance(error, CallerError)
    assert "this client was closed" in str(error)


def test_a_call_that_is_tried_again_says_that_the_client_was_closed(tmp_path: Path) -> None:
    with serving(tmp_path, is_busy) as server:
        client = Client(server.api, timeout=24 * 3600.0)
        result = closed_while(
            lambda: client.publish("t", {}), client, lambda: server.wait_for(lambda: len(server.requests) >= 2)
        )
        assert isinstance(result.exception(), CallerError)
        with pytest.raises(CallerError, match="closed"):
            client.peers()
        assert list(client.subscribe("t")) == []


async def test_an_async_subscription_that_is_reconnecting_ends_when_the_client_is_closed(tmp_path: Path) -> None:
    with serving(tmp_path, breaks) as server:
        client = AsyncClient(server.api)
        found = []

        async def read() -> None:
            found.extend([each async for each in client.subscribe("t")])

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                while len(server.requests) < 2:  # noqa: ASYNC110  # the server is a thread
                    await trio.sleep(0.01)
                await client.aclose()
        assert found == []
        with pytest.raises(CallerError, match="closed"):
            await client.peers()
