"""A webhook that does what a test says, in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Behaviour = Literal["take", "fail", "hang", "cut"]


class Webhook:
    """Answers by `behaviour`, which may be changed at any time: 204, 500, not at all, or half an answer.

    `posts` counts all, `taken` has the documents that were answered with 204, in order.
    """

    def __init__(self) -> None:
        self.behaviour: Behaviour = "take"
        self.posts = 0
        self.taken: list[dict[str, Any]] = []
        self.gone = threading.Event()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook.answer(self, document)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the tests ask for what they want to know."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/messages"

    def answer(self, handler: BaseHTTPRequestHandler, document: dict[str, Any]) -> None:
        with self._lock:
            self.posts += 1
            behaviour = self.behaviour
            if behaviour == "take":
                self.taken.append(document)
        if behaviour == "hang":
            self.gone.wait(60)
            handler.close_connection = True
        elif behaviour == "cut":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of")
            handler.close_connection = True
        else:
            handler.send_response(204 if behaviour == "take" else 500)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def open_webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    thread = threading.Thread(target=webhook.serve)
    thread.start()
    try:
        yield webhook
    finally:
        webhook.stop()
        thread.join()
