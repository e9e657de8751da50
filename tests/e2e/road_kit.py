"""Load for the roads: writers of opportunities at sidecars, and readers that note everything they are given."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from p2pnode.errors import NoSidecar
from tests.e2e.harness import Node, wait_until

FORMING = "councils.forming"
RECONNECT_SECONDS = 0.05
SUBSCRIPTION = "reader"

Document = dict[str, Any]


def opportunity(council_id: str = "") -> Document:
    """One that any sidecar may publish to the topic."""
    return {
        "council_id": council_id or str(uuid.uuid4()),
        "project_name": "Roads",
        "repository": "https://gitea.example/roads",
        "core_roles": ["tpm"],
    }


class Writer:
    """Publishes an opportunity at a node every `1 / rate` seconds until it is stopped, also over the node's restarts.

    Attributes:
        ids: by the name of the phase in which the publication began and ended; "" when it lay across two.
    """

    def __init__(self, node: Node, phase: Callable[[], str], rate: float) -> None:
        self.ids: dict[str, list[str]] = {}
        self.faults: list[Exception] = []
        self._node, self._phase, self._rate = node, phase, rate
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def all(self) -> set[str]:
        return {each for ids in list(self.ids.values()) for each in list(ids)}

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            before = self._phase()
            try:
                message_id = self._publish()
            except Exception as error:  # told to the test, which looks at `faults`
                self.faults.append(error)
                return
            phase = before if self._phase() == before else ""
            self.ids.setdefault(phase, []).append(message_id)
            due = max(due + 1 / self._rate, time.monotonic() - 1)
            self._stopped.wait(max(0.0, due - time.monotonic()))

    def _publish(self) -> str:
        """Tried again with one key, so that there is one message."""
        body, headers = json.dumps(opportunity()).encode(), {"Idempotency-Key": str(uuid.uuid4())}

        def attempt() -> str | None:
            try:
                response = self._node.publish(FORMING, body, headers)
            except NoSidecar:
                return None
            if response.status in (429, 503):
                return None
            assert response.status == 202, response
            return str(response.json()["id"])

        return wait_until(f"{self._node.name} takes an opportunity", attempt)


class DurableReader:
    """A durable subscription to a topic at one node, read from the start; every message is acknowledged at once.

    Attributes:
        given: how often each message id was given.
    """

    def __init__(self, node: Node, topic: str) -> None:
        self.given: Counter[str] = Counter()
        self._node, self._topic = node, topic
        self._closed = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def twice(self) -> list[str]:
        return [each for each, count in self.given.items() if count > 1]

    def _run(self) -> None:
        path = f"/api/v1/topics/{self._topic}/events?subscription={SUBSCRIPTION}&from=start"
        while not self._closed.is_set():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, suppress(OSError):
                sock.connect(self._node.api.removeprefix("unix:"))
                self._socket = sock
                if not self._closed.is_set():
                    sock.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                    with sock.makefile("rb") as lines:
                        self._read(lines)
            self._closed.wait(RECONNECT_SECONDS)

    def _read(self, lines: Iterator[bytes]) -> None:
        for line in lines:
            if line.startswith(b"data:") and line.endswith(b"\n"):
                document = json.loads(line[5:])
                if "id" in document:
                    self.given[document["id"]] += 1
                    self._acknowledge(document["id"])

    def _acknowledge(self, message_id: str) -> None:
        body = json.dumps({"id": message_id}).encode()
        path = f"/api/v1/subscriptions/{SUBSCRIPTION}/ack"
        response = self._node.client.request("POST", path, body=body, timeout_seconds=20)
        assert response.status in (200, 204), response


@contextmanager
def reading(*nodes: Node, topic: str = FORMING) -> Iterator[dict[str, DurableReader]]:
    readers = {node.name: DurableReader(node, topic) for node in nodes}
    try:
        yield readers
    finally:
        for reader in readers.values():
            reader.close()


@contextmanager
def writing(phase: Callable[[], str], *nodes: Node, rate: float = 10) -> Iterator[list[Writer]]:
    writers = [Writer(node, phase, rate) for node in nodes]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stop()


class LegacyAgent:
    """An agent's HTTP API without a sidecar: its health, and what was posted to it with the headers.

    Attributes:
        asked: how often it was asked for its health.
    """

    def __init__(self) -> None:
        self.posts: list[tuple[dict[str, str], Document]] = []
        self.asked = 0
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                agent.asked += self.path == "/health"
                self._answer(200 if self.path == "/health" else 404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                agent.posts.append((dict(self.headers.items()), json.loads(body)))
                self._answer(202 if self.path == "/api/v1/opportunities/council" else 404)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the tests ask for what they want to know."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def health_port(self) -> int:
        return int(self.server.server_port)


@contextmanager
def legacy_agent() -> Iterator[LegacyAgent]:
    agent = LegacyAgent()
    thread = threading.Thread(target=agent.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield agent
    finally:
        agent.server.shutdown()
        agent.server.server_close()
        thread.join()
