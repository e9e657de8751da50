"""A sidecar's HTTP listener that does what a test says, in a thread of its own: one request on each connection."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

DEADLINE_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """What came; header names are lower case. `gone` is set when the server stops."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    gone: threading.Event

    def json(self) -> object:
        return json.loads(self.body)


Script = Callable[[Request], Iterator[bytes]]
"""What to send, part by part; the connection is closed after the last."""


class Server:
    """Made by `serving`. `script` may be replaced at any time; `requests` has all that came, in order."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path = path
        self.script = script
        self.requests: list[Request] = []
        self.gone = threading.Event()
        self._came = threading.Condition()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = self._listen()

    @property
    def api(self) -> str:
        return f"unix:{self.path}"

    def wait_for(self, what: Callable[[], object]) -> None:
        """Until it is true after a request; fails at the deadline."""
        with self._came:
            assert self._came.wait_for(what, DEADLINE_SECONDS), self.requests

    def stop(self) -> None:
        """As a sidecar that is killed: every connection breaks, and nobody listens."""
        self.gone.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()
        self._connections.clear()
        self._threads.clear()

    def start_again(self) -> None:
        self.gone = threading.Event()
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen()
        thread = threading.Thread(target=self._accept, args=(listener,))
        self._threads.append(thread)
        thread.start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = _read(connection, self.gone)
            if request is None:
                return
            with self._came:
                self.requests.append(request)
                self._came.notify_all()
            for part in self.script(request):
                connection.sendall(part)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(directory: Path, script: Script) -> Iterator[Server]:
    server = Server(directory / "api.sock", script)
    try:
        yield server
    finally:
        server.stop()


def _read(connection: socket.socket, gone: threading.Event) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    method, target, _ = first.split(" ")
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return Request(method, parts.path, query, headers, body, gone)


def answer(status: int, document: object, *headers: str) -> bytes:
    body = json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} Whatever", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + body


def stream_head() -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nretry: 1000\n\n"


def event(number: int, **members: object) -> bytes:
    document = {"id": f"origin-{number}", "topic": "t", "origin": "origin", "payload": {"number": number}, **members}
    return f"id: origin-{number}\nevent: message\ndata: {json.dumps(document)}\n\n".encode()


def accepted(seqno: int = 7, **members: object) -> bytes:
    return answer(202, {"id": f"origin-{seqno}", "seqno": str(seqno), **members})
