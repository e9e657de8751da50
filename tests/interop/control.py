"""The control protocol of the foreign peers: one JSON object a line, commands on stdin, answers and events on stdout.

A peer first prints `{"event": "ready", "peer_id": ..., "addrs": [...]}`; each address ends in `/p2p/<peer id>`.
Each command is answered by one line, in the order of the commands:

| command                                        | answer                                                       |
|------------------------------------------------|--------------------------------------------------------------|
| {"cmd": "dial", "addr": ...}                   | {"reply": "dial"}                                            |
| {"cmd": "subscribe", "topic": ...}             | {"reply": "subscribe"}                                       |
| {"cmd": "publish", "topic": ..., "data_b64": ...} | {"reply": "publish"}                                      |
| {"cmd": "peers"}                               | {"reply": "peers", "peers": [peer id, ...]}, connected peers |
| {"cmd": "topic_peers", "topic": ...}           | the same, peers known to be subscribed                       |
| {"cmd": "mesh", "topic": ...}                  | the same, peers in its mesh; null where the peer cannot tell |
| {"cmd": "streams", "peer": ...}                | {"reply": "streams", "streams": [[direction, protocol]]}     |
| {"cmd": "serve_echo", "protocols": [...]}      | {"reply": "serve_echo"}; their streams say all again         |
| {"cmd": "echo", "peer": ..., "protocols": [...], "streams": ..., "bytes": ...} | {"reply": "echo", "equal": ...} |
| {"cmd": "discovered"}                          | {"reply": "discovered", "addrs": [...]}                      |
| {"cmd": "stats"}                               | {"reply": "stats", "rss_bytes": ..., "cpu_seconds": ...}     |
| {"cmd": "exit"}                                | {"reply": "exit"}, then the peer ends                        |

`streams` are the open pubsub streams with one peer, each inbound or outbound; null where the peer cannot tell.
`echo` opens so many streams to a connected peer at the same time, in turn of the protocols: one byte comes back on
each of them, so all are open, then so many random bytes; `equal` is on how many they came back unchanged.
`discovered` are the addresses, each with `/p2p/<peer id>`, of those that multicast DNS found; js alone knows the
command.
A command that fails is answered by `{"error": text, "cmd": ...}`. A received message, never one's own, is printed as
`{"event": "message", "topic", "from", "seqno", "data_b64", "received_at", "via"}`: `seqno` is 16 hexadecimal digits,
`received_at` unix seconds, `via` the forwarding peer or null where the peer does not know. The end of stdin ends the
peer. This module is the side of the Python peers; it runs in their virtual environments and needs only the
standard library.
"""

import base64
import json
import os
import resource
import sys
import threading
import time
from typing import Any, Protocol

READY = "ready"
MESSAGE = "message"


class Peer(Protocol):
    """What a Python peer does for the control loop; a failure is any exception, and its text is the answer."""

    def dial(self, addr: str) -> None: ...

    def subscribe(self, topic: str) -> None: ...

    def publish(self, topic: str, data: bytes) -> None: ...

    def peers(self) -> list[str]: ...

    def topic_peers(self, topic: str) -> list[str]: ...

    def mesh(self, topic: str) -> list[str] | None: ...

    def streams(self, peer: str) -> list[tuple[str, str]] | None: ...

    def serve_echo(self, protocols: list[str]) -> None: ...

    def echo(self, peer: str, protocols: list[str], streams: int, size: int) -> int: ...


class Output:
    """Protocol lines, one at a time, from any thread; everything else that prints goes to stderr instead.

    Made before the foreign library is imported, because importing one prints.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def emit(self, value: dict[str, Any]) -> None:
        line = json.dumps(value)
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def ready(self, peer_id: str, addrs: list[str]) -> None:
        self.emit({"event": READY, "peer_id": peer_id, "addrs": addrs})

    def message(self, topic: str, author: str, seqno: bytes, data: bytes) -> None:
        self.emit(
            {
                "event": MESSAGE,
                "topic": topic,
                "from": author,
                "seqno": seqno.hex(),
                "data_b64": base64.b64encode(data).decode(),
                "received_at": time.time(),
                "via": None,
            }
        )


def serve(peer: Peer, output: Output) -> None:
    """Answers commands until `exit` or the end of stdin."""
    for line in sys.stdin:
        name = None
        try:
            request = json.loads(line)
            name = request["cmd"]
            output.emit({"reply": name, **answer(peer, request)})
        except Exception as error:
            output.emit({"error": f"{type(error).__name__}: {error}", "cmd": name})
        if name == "exit":
            return


def answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    """Carries out one command; returns the fields of its reply."""
    match request["cmd"]:
        case "dial":
            peer.dial(request["addr"])
        case "subscribe":
            peer.subscribe(request["topic"])
        case "publish":
            peer.publish(request["topic"], base64.b64decode(request["data_b64"]))
        case "peers":
            return {"peers": peer.peers()}
        case "topic_peers":
            return {"peers": peer.topic_peers(request["topic"])}
        case "mesh":
            return {"peers": peer.mesh(request["topic"])}
        case "streams":
            return {"streams": peer.streams(request["peer"])}
        case "serve_echo":
            peer.serve_echo(request["protocols"])
        case "echo":
            return {"equal": peer.echo(request["peer"], request["protocols"], request["streams"], request["bytes"])}
        case "stats":
            return own_stats()
        case "exit":
            pass
        case unknown:
            raise ValueError(f"unknown command {unknown}")
    return {}


def own_stats() -> dict[str, float]:
    """Resident bytes and CPU seconds (user and system) of this process, all threads."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"rss_bytes": pages * resource.getpagesize(), "cpu_seconds": usage.ru_utime + usage.ru_stime}
