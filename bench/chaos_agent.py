"""An agent of `bench.chaos`: handles every message of a topic and writes its id down, a line each, before it says so.

python -m bench.chaos_agent stream unix:PATH TOPIC FILE     # reads the sidecar's durable event stream
python -m bench.chaos_agent webhook PORT TOPIC FILE         # is posted to on 127.0.0.1; every twentieth post gets a 500
"""

from __future__ import annotations

import json
import os
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from p2pnode.client import Client

SUBSCRIPTION: Final = "chaos"
FAILED_SHARE: Final = 0.05


class Notes:
    """The file of ids. Each line is one write to the end of it, so that it outlives a kill -9 whole."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, message_id: str) -> None:
        os.write(self._file, f"{message_id}\n".encode())


def read_stream(api: str, topic: str, notes: Notes) -> None:
    with Client(api, timeout=3600) as sidecar:
        for message in sidecar.subscribe(topic, name=SUBSCRIPTION, start="start"):
            notes.add(message.id)
            message.ack()


def serve_webhook(port: int, topic: str, notes: Notes) -> None:
    chance = random.Random()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            failed = chance.random() < FAILED_SHARE
            if not failed and document["topic"] == topic:
                notes.add(document["id"])
            self.send_response(500 if failed else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the ids are the log."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def main() -> None:
    kind, where, topic, path = sys.argv[1:]
    if kind == "stream":
        read_stream(where, topic, Notes(path))
    else:
        serve_webhook(int(where), topic, Notes(path))


if __name__ == "__main__":
    main()
