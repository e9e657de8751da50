"""Posting to the agent's webhook over HTTP, and what its answers mean."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import trio

from p2pnode.core.delivery import MAX_RETRY_AFTER_SECONDS, ORIGINS_AT_ONCE

MAX_ANSWER_BYTES = 64 * 1024
SHOWN_CHARACTERS = 200
"""Of an answer, in errors."""


@dataclass(frozen=True, slots=True)
class Taken:
    """2xx: the agent has it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent will never take it: 3xx, and 4xx other than 429."""

    error: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Not now.

    Args:
        down: no other message would have been taken either.
        retry_after: seconds that the agent asked to be left alone.
    """

    error: str
    down: bool
    retry_after: float = 0.0


Outcome = Taken | Refused | Failed
Post = Callable[[bytes, Mapping[str, str]], Awaitable[Outcome]]
"""Sends a body with headers; never raises but when cancelled."""


def judge(status: int, body: bytes, headers: Mapping[str, str], wall_seconds: float) -> Outcome:
    """What a whole answer means. `headers` are found by lower-case names."""
    if 200 <= status < 300:
        return Taken()
    said = f"HTTP {status}"
    if text := body[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace").strip()[:SHOWN_CHARACTERS]:
        said += f": {text}"
    if 300 <= status < 400:
        place = headers.get("location", "")[:SHOWN_CHARACTERS]
        return Refused(f"HTTP {status}: redirects are not followed; set agent.webhook to {place or 'its target'}")
    if 400 <= status < 500 and status != 429:
        return Refused(said)
    wait = _retry_after(headers.get("retry-after", ""), wall_seconds)
    return Failed(said, down=status == 429 or wait > 0, retry_after=wait)


def _retry_after(text: str, wall_seconds: float) -> float:
    """RFC 9110, 10.2.3: seconds, or a date; 0 when it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = moment.timestamp() - wall_seconds
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else 0.0


@asynccontextmanager
async def open_agent(url: str, timeout_seconds: float, wall_ns: Callable[[], int]) -> AsyncIterator[Post]:
    """A way to post to `url`.

    Redirects are not followed, proxies of the environment not used: the agent is a neighbour. A certificate is checked
    as usual, `SSL_CERT_FILE` is heard.

    Args:
        timeout_seconds: for one attempt, from the connection to the end of the answer.
    """
    import httpx

    client = httpx.AsyncClient(
        verify=httpx.create_ssl_context() if url.startswith("https:") else False,
        timeout=None,
        trust_env=False,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=ORIGINS_AT_ONCE, max_keepalive_connections=ORIGINS_AT_ONCE),
        headers={"User-Agent": "p2pnode", "Accept-Encoding": "identity"},
    )

    async def exchange(body: bytes, headers: Mapping[str, str]) -> Outcome:
        answer = bytearray()
        response = await client.send(
            client.build_request("POST", url, content=body, headers=dict(headers)), stream=True
        )
        try:
            # Cancelled rather than left: leaving the loop would strand the library's generators half-way.
            with trio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    answer += chunk[: MAX_ANSWER_BYTES - len(answer)]
                    if len(answer) >= MAX_ANSWER_BYTES:
                        reading.cancel()
        finally:
            await response.aclose()
        return judge(response.status_code, bytes(answer), response.headers, wall_ns() / 1e9)

    async def post(body: bytes, headers: Mapping[str, str]) -> Outcome:
        try:
            with trio.fail_after(timeout_seconds):
                return await exchange(body, headers)
        except trio.TooSlowError:
            return Failed(f"no whole answer within {timeout_seconds:g} s", down=True)
        except httpx.ConnectError as error:
            return Failed(f"cannot connect to the agent: {error or 'it is not there'}", down=True)
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            return Failed(f"the agent broke off, or what it answered is no HTTP: {said[:SHOWN_CHARACTERS]}", down=True)

    try:
        yield post
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await client.aclose()
