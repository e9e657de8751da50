"""A tiny real HTTP server on a Unix socket that answers as a sidecar would, and a clock to put forward."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

Framing = Literal["length", "chunked", "close", "broken"]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the server sends back; `broken` announces one byte more than it sends."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = "length"


Responder = Callable[[Request], Answer]


class FakeSidecar:
    """Answers each path from a list, one answer per request; the last one stays."""

    def __init__(self, path: Path) -> None:
        self.api = f"unix:{path}"
        self.requests: list[Request] = []
        self.stop = threading.Event()
        self._path = path
        self._answers: dict[tuple[str, str], list[Responder]] = {}

    def on(self, method: str, path: str, *answers: Answer | Responder) -> None:
        self._answers[method, path] = [_responder(answer) for answer in answers]

    def serves(self, path: str, *documents: Any) -> None:
        self.on("GET", path, *(document_answer(document) for document in documents))

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        answers = self._answers.get((request.method, request.path.partition("?")[0]))
        if answers is None:
            return problem(404, "no such path")
        return (answers.pop(0) if len(answers) > 1 else answers[0])(request)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer while the block runs; at its end answers that wait for `stop` are let go."""
        with _Server(str(self._path), _Handler) as server:
            server.sidecar = self
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield
            finally:
                self.stop.set()
                server.shutdown()
                thread.join()


def _responder(answer: Answer | Responder) -> Responder:
    return (lambda _request: answer) if isinstance(answer, Answer) else answer


def document_answer(document: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(document).encode(), status, {"Content-Type": "application/json"})


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> Answer:
    document = {"type": "about:blank", "title": "No", "status": status, "detail": detail, **members}
    return Answer(
        json.dumps(document).encode(), status, {"Content-Type": "application/problem+json", **(headers or {})}
    )


def event_stream(*parts: str, framing: Framing = "chunked") -> Answer:
    return Answer([part.encode() for part in parts], 200, {"Content-Type": "text/event-stream"}, framing)


class _Server(socketserver.ThreadingUnixStreamServer):
    sidecar: FakeSidecar


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        assert isinstance(self.server, _Server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.sidecar.answer(Request(self.command, self.path, headers, body))
        self.close_connection = True
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        parts = [answer.body] if isinstance(answer.body, bytes) else answer.body
        if answer.framing in ("length", "broken"):
            whole = b"".join(parts)
            parts = [whole]
            self.send_header("Content-Length", str(len(whole) + (answer.framing == "broken")))
        elif answer.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        try:
            self.end_headers()
            for part in parts:
                if answer.framing == "chunked":
                    part = b"%x;ext=1\r\n%s\r\n" % (len(part), part) if part else b""
                self.wfile.write(part)
            if answer.framing == "chunked":
                self.wfile.write(b"0\r\nTrailer: yes\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # the command had all it wanted

    do_GET = do_POST = do_PATCH = _handle


class Clock:
    """The monotonic clock, which a test may put forward."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds
