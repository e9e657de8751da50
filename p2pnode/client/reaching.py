"""Where the sidecar is and what it wants to see, and answers of httpx in our terms."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

import httpx

from p2pnode.client.asking import Answer, Ask, NotASidecar
from p2pnode.errors import CallerError, NoSidecar
from p2pnode.local.address import ApiListener, UnixAddress, bracketed, parse_api_address

CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 60.0
"""A sidecar sends a comment every 15 s: three missed, and nobody is there any more."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024

LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=4, keepalive_expiry=4.0)
"""Each subscription holds a connection; the sidecar closes one that is idle for 5 s."""
STREAM_TIMEOUT: Final = httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS)


@dataclass(frozen=True, slots=True)
class Target:
    """A sidecar, and the bearer token for it; empty for none."""

    address: ApiListener
    token: str

    @property
    def base_url(self) -> str:
        if isinstance(self.address, UnixAddress):
            return "http://localhost"
        return f"http://{bracketed(self.address.host)}:{self.address.port}"

    @property
    def socket(self) -> str | None:
        return self.address.path if isinstance(self.address, UnixAddress) else None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def no_answer(self, error: httpx.TransportError) -> NoSidecar:
        return NoSidecar(
            f"no sidecar answers at {self.address}: {error or type(error).__name__}",
            hint="is it running, and is this the address it was started with (--api)?",
        )


def find(api: str | None, token: str | None) -> Target:
    """The sidecar at `api`, else at `P2PNODE_API`; with `token`, else what the file `P2PNODE_API_TOKEN_FILE` holds.

    Raises:
        CallerError: none is named, or what is named cannot be used.
    """
    text = api or os.environ.get("P2PNODE_API")
    if not text:
        raise CallerError(
            "no sidecar is named",
            hint="set P2PNODE_API or give `api`: unix:PATH or tcp:HOST:PORT; `p2pnode run -- COMMAND` sets it",
        )
    address = parse_api_address(text, field="api" if api else "P2PNODE_API")
    file = os.environ.get("P2PNODE_API_TOKEN_FILE")
    if token is None:
        token = _read_token(file) if file else ""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CallerError("the token is not one word of printable ASCII")
    return Target(address, token)


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise CallerError(f"the token file {path} cannot be read: {reason}") from error


class Gathering:
    """An answer while its body comes in.

    Args:
        response: its head.
        seconds: within which the body must be complete.
    """

    def __init__(self, response: httpx.Response, seconds: float) -> None:
        self._response = response
        self._deadline = time.monotonic() + seconds
        self._body = bytearray()

    def add(self, chunk: bytes) -> NoSidecar | None:
        """Take a part; an error when no more is to be read."""
        self._body += chunk
        if len(self._body) > MAX_ANSWER_BYTES:
            return NotASidecar(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > self._deadline:
            return NoSidecar("the answer was not complete in time")
        return None

    @property
    def answer(self) -> Answer:
        return Answer(self._response.status_code, self._response.headers, bytes(self._body))


def closed() -> CallerError:
    return CallerError("this client was closed", hint="make another one")


def is_event_stream(response: httpx.Response) -> bool:
    return response.status_code == 200 and response.headers.get("content-type", "").startswith("text/event-stream")


def timeout_of(ask: Ask) -> httpx.Timeout:
    return httpx.Timeout(ask.seconds, connect=min(ask.seconds, CONNECT_SECONDS))
