"""The Docker Engine API as far as discovery asks it: tasks and services, bounded in size, every failure explained."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import trio

from p2pnode.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    import httpx

TESTED_API: Final = (1, 41)
"""Newest version that was run against a real daemon; a newer daemon that still speaks it is asked in it."""

OLDEST_API: Final = (1, 24)
"""First version with tasks and services."""

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""A real task in two networks is 2 KB; 34 are 67 KB."""

_MOST_SHOWN: Final = 200
_DNS_INSTEAD: Final = "or ask Swarm's DNS, which needs no socket: --bootstrap dns:tasks.SERVICE"


@asynccontextmanager
async def open_docker_api(url: str, *, limit_bytes: int = MAX_ANSWER_BYTES) -> AsyncIterator[DockerApi]:
    """One connection to a daemon, with a version that both sides speak.

    Raises:
        Unavailable: it cannot be reached, or speaks no version with Swarm; see `DockerApi`.
        InvalidRequest: `url` is none of `unix:///PATH`, `tcp://HOST:PORT`, `http://HOST:PORT`.
    """
    import httpx

    path, base = split_docker_url(url)
    # There is no TLS here. `verify` left on loads every root certificate anew for each look: 60 ms of CPU.
    async with httpx.AsyncHTTPTransport(uds=path or None, verify=False) as transport:
        api = DockerApi(url, path, base, transport, limit_bytes)
        await api.negotiate()
        yield api


def split_docker_url(url: str) -> tuple[str, str]:
    """Socket path (empty for TCP) and the HTTP base to ask.

    Raises:
        InvalidRequest: `url` has another form.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
            return url.removeprefix("unix://"), "http://docker"
        if parts.scheme in ("tcp", "http") and parts.hostname and parts.port and parts.path in ("", "/"):
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return "", f"http://{host}:{parts.port}"
    except ValueError:
        pass
    raise InvalidRequest(f"{url!r} is no Docker API", hint="write unix:///PATH, tcp://HOST:PORT or http://HOST:PORT")


class Listing:
    """An answer that lists something, not yet parsed: 1,000 tasks are 2 MB, and mostly the same as last time.

    Args:
        body: the answer.
        parse: what its items are.
    """

    def __init__(self, body: bytes, parse: Callable[[], list[object]]) -> None:
        self.digest: Final = hashlib.blake2b(body, digest_size=16).digest()
        self._parse = parse

    def items(self) -> list[object]:
        """Its items.

        Raises:
            Unavailable: the answer is an error, or no list.
        """
        return self._parse()


class DockerApi:
    """What one daemon answers. Redirects, proxies and compression are not followed, used or asked for.

    Every failure is an `Unavailable` whose `reason` is a trouble's code: `docker-socket-missing`,
    `docker-socket-forbidden`, `docker-unreachable`, `docker-no-manager`, `docker-answer`, `no-such-service`;
    `detail` is the problem and `hint` the fix.
    """

    def __init__(self, url: str, path: str, base: str, transport: httpx.AsyncHTTPTransport, limit_bytes: int) -> None:
        self._url = url
        self._path = path
        self._base = base
        self._transport = transport
        self._limit_bytes = limit_bytes
        self._version = ""

    async def negotiate(self) -> None:
        """Take the newest version that both speak; without a prefix where a socket proxy hides `/version`."""
        status, body = await self._get("/version")
        if status in (401, 403, 404):
            self._version = ""
            return
        answer = self._document(status, body, "/version")
        theirs = _version(answer.get("ApiVersion")) if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or theirs is None:
            raise self._unexpected("/version names no ApiVersion", "is that the Docker API? curl it to see who answers")
        if theirs < OLDEST_API:
            raise self._unexpected(
                f"it speaks API {_dotted(theirs)}, and Swarm's tasks came with {_dotted(OLDEST_API)}",
                "upgrade Docker Engine to 1.12 or later",
            )
        least = _version(answer.get("MinAPIVersion")) or OLDEST_API
        self._version = f"/v{_dotted(min(max(TESTED_API, least), theirs))}"

    async def tasks(self, service: str, *, desired: str | None = "running") -> Listing:
        """The tasks of `service`, as the API writes them.

        Args:
            desired: only tasks meant to be in this state; None: also those that ended.
        """
        filters = {"service": [service]} | ({"desired-state": [desired]} if desired else {})
        asked = f"/tasks?filters={quote(json.dumps(filters, separators=(',', ':')))}"
        status, body = await self._get(self._version + asked)
        message = _message(body) if status == 404 else ""
        if message.startswith("service ") and message.endswith(" not found"):
            raise Unavailable(f"Docker at {self._url} knows no service {service!r}", reason="no-such-service")
        return Listing(body, lambda: self._listed(status, body, f"the tasks of {service}"))

    async def services(self) -> list[str]:
        """Names of all services, sorted."""
        status, body = await self._get(self._version + "/services")
        specs = [each.get("Spec") for each in self._listed(status, body, "the services") if isinstance(each, dict)]
        names = [spec.get("Name") for spec in specs if isinstance(spec, dict)]
        return sorted({clean(name) for name in names if isinstance(name, str) and name})

    async def _get(self, target: str) -> tuple[int, bytes]:
        import httpx

        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "p2pnode"}
        body = bytearray()
        too_long = False
        try:
            response = await self._transport.handle_async_request(
                httpx.Request("GET", self._base + target, headers=headers)
            )
            try:
                # Cancelled rather than left: leaving the loop would strand the libraries' generators half-way.
                with trio.CancelScope() as reading:
                    async for chunk in response.aiter_raw():
                        too_long = too_long or len(body) + len(chunk) > self._limit_bytes
                        if too_long:
                            reading.cancel()
                        else:
                            body += chunk
            finally:
                await response.aclose()
        except httpx.ConnectError as error:
            raise self._unconnected(_os_errors(error), str(error)) from error
        except httpx.ProtocolError as error:
            raise self._unexpected(
                f"it breaks HTTP in its answer to {_short(target)}: {clean(str(error))}",
                "is that the Docker API? curl it to see who answers; TLS is not supported",
            ) from error
        except httpx.HTTPError as error:
            said = clean(str(error)) or type(error).__name__
            raise self._unreachable(f"the connection broke in its answer to {_short(target)}: {said}") from error
        if too_long:
            raise self._unexpected(
                f"its answer to {_short(target)} is longer than {self._limit_bytes} bytes",
                "is that the Docker API? A service of that many tasks is beyond p2pnode",
            )
        return response.status_code, bytes(body)

    def _listed(self, status: int, body: bytes, what: str) -> list[object]:
        answer = self._document(status, body, what)
        if not isinstance(answer, list):
            raise self._unexpected(f"{what} are a JSON list, and it sent none", "is that the Docker API?")
        return answer

    def _document(self, status: int, body: bytes, what: str) -> Any:
        """The JSON of an answer.

        Raises:
            Unavailable: it is no 200, or no JSON.
        """
        said = f"{status}: {_message(body)}" if status != 200 else ""
        if status in (401, 403):
            raise Unavailable(
                f"Docker at {self._url} does not let this node ask for {what} ({said})",
                reason="docker-socket-forbidden",
                hint="where a socket proxy answers, set TASKS=1 and SERVICES=1 in its environment",
            )
        if status == 503 and "swarm" in said.lower():
            raise Unavailable(
                f"Docker at {self._url} manages no Swarm ({said})",
                reason="docker-no-manager",
                hint="run this node on a manager (deploy.placement.constraints: [node.role == manager]), or give the "
                f"socket proxy of a manager as DOCKER_HOST=tcp://HOST:2375, {_DNS_INSTEAD}",
            )
        if status == 404:
            raise self._unexpected(f"it has no such thing as {what} ({said})", "Podman has no Swarm; Docker is needed")
        if status != 200:
            fix = "see the daemon's log: journalctl -u docker"
            if 300 <= status < 400:
                fix = "redirects are not followed; give the address that it leads to"
            elif "version" in said:
                fix = "upgrade the older of the two: Docker Engine or p2pnode"
            elif "HTTPS" in said:
                fix = "TLS is not supported; put a socket proxy beside the node and give DOCKER_HOST=tcp://HOST:2375"
            raise self._unexpected(f"asked for {what}, it answers {said}", fix)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else clean(str(error))
            raise self._unexpected(
                f"its answer for {what} is no JSON ({reason}): {clean(body[:60].decode('utf-8', 'replace'))!r}",
                "is that the Docker API? curl it to see who answers",
            ) from error

    def _unexpected(self, what: str, fix: str) -> Unavailable:
        return Unavailable(f"Docker at {self._url}: {what}", reason="docker-answer", hint=fix)

    def _unreachable(self, what: str) -> Unavailable:
        return unreachable(self._url, what)

    def _unconnected(self, errors: list[OSError], said: str) -> Unavailable:
        directory = os.path.isdir(self._path)
        missing = any(isinstance(error, FileNotFoundError | NotADirectoryError) for error in errors)
        if self._path and (directory or missing):
            there = "a directory, as Docker makes it where a mount's source is missing" if directory else "no such file"
            return Unavailable(
                f"{self._path} is no Docker socket: {there}",
                reason="docker-socket-missing",
                hint=f"on a manager node mount it (volumes: [/var/run/docker.sock:{self._path}:ro]), {_DNS_INSTEAD}",
            )
        if any(isinstance(error, PermissionError) for error in errors):
            return _forbidden(self._url, self._path)
        reasons = dict.fromkeys(error.strerror for error in errors if error.strerror)
        return self._unreachable(f"no connection: {', '.join(reasons) or clean(said) or 'unknown reason'}")


def unreachable(url: str, what: str) -> Unavailable:
    """What to say of a daemon that is not heard."""
    fix = "see that the host answers there, and that discovery.docker_host or DOCKER_HOST is right"
    if url.startswith("unix:"):
        fix = (
            "start Docker (systemctl start docker); restart also a container whose socket was mounted before Docker "
            "restarted: it holds the old one"
        )
    return Unavailable(f"Docker at {url}: {what}", reason="docker-unreachable", hint=fix)


def _forbidden(url: str, path: str) -> Unavailable:
    """What to say of a socket that this process may not open, with its owner and mode where they can be seen."""
    who = f"uid {os.geteuid()}, gid {os.getegid()}"
    group = "GID"
    try:
        found = os.stat(path)
    except OSError:
        owner = "a directory above it is closed"
    else:
        group = str(found.st_gid)
        owner = f"it is of uid {found.st_uid}, gid {found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o}"
    return Unavailable(
        f"this process ({who}) may not open the Docker socket {path or url}: {owner}",
        reason="docker-socket-forbidden",
        hint=f"give it the socket's group (docker service update --group-add {group} SERVICE; docker run --group-add "
        f"{group}), or put a socket proxy with TASKS=1 and SERVICES=1 before it and give DOCKER_HOST=tcp://HOST:2375",
    )


def clean(text: str) -> str:
    """Text of others as one bounded line of printable ASCII, fit for logs and documents."""
    if len(text) <= _MOST_SHOWN and text.isascii() and text.isprintable():
        return text
    line = " ".join(text[: 4 * _MOST_SHOWN].split())
    line = "".join(each if " " <= each <= "~" else "?" for each in line)
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


def _message(body: bytes) -> str:
    """What an error says: the `message` of its JSON, else its first words."""
    if len(body) > 64 * 1024:
        return clean(body[:_MOST_SHOWN].decode("utf-8", "replace"))
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, Mapping) and isinstance(answer.get("message"), str):
        return clean(answer["message"])
    return clean(body.decode("utf-8", "replace")) or "nothing more"


def _version(value: object) -> tuple[int, int] | None:
    found = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", value) if isinstance(value, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _short(target: str) -> str:
    return target.partition("?")[0]


def _os_errors(error: BaseException) -> list[OSError]:
    """The operating system's own errors behind a library's, which wraps and groups them."""
    found: list[OSError] = []
    left: list[BaseException | None] = [error]
    while left and len(found) < 8:
        each = left.pop(0)
        if isinstance(each, OSError) and each.errno is not None:
            found.append(each)
        elif isinstance(each, BaseExceptionGroup):
            left.extend(each.exceptions)
        elif each is not None:
            left.append(each.__cause__ or each.__context__)
    return found
