"""`p2pnode doctor` on NATS, HTTP and bridges, beside real sidecars and a real nats-server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nats
from nats.js.api import DiscardPolicy, StreamConfig

from tests.carriers.nats.server import NatsServer
from tests.e2e.doctor import ask, env_of, told
from tests.e2e.harness import Node, command, running_node, wait_until

FORMING = "chorus.councils.forming"
THREAD = "hmmm.full"
BRIDGE = ("--role", "bridge")


def publish(url: str, subject: str, body: bytes) -> None:
    """What a plain client does."""

    async def once() -> None:
        client = await nats.connect(url)
        try:
            await client.publish(subject, body)
            await client.flush()
        finally:
            await client.close()

    asyncio.run(once())


def test_a_bridge_whose_server_is_away_refuses_it_or_speaks_no_tls(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", config='authorization { user: "u", password: "good" }')
    bad = {"NATS_USER": "u", "NATS_PASSWORD": "bad"}
    with running_node(tmp_path, "b", *BRIDGE, env=env_of(tmp_path, NATS_URL=server.url, **bad)) as bridge, server:
        finding = told(bridge, "nats-unreachable", "degraded")
        assert finding["evidence"][0] == f"{server.url}: not connected"
        server.start()
        assert server.url in told(bridge, "nats-authorization", "degraded")["title"]
        assert ask(bridge).get("nats-unreachable") is None
        plain = env_of(tmp_path, NATS_URL=server.url.replace("nats:", "tls:"))
        with running_node(tmp_path, "t", *BRIDGE, env=plain) as insecure:
            assert "does not use TLS" in told(insecure, "nats-plaintext", "degraded")["title"]


def test_bridges_with_different_keys_name_each_other_with_both_keys(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats").start() as server:
        env = env_of(tmp_path, NATS_URL=server.url)
        with (
            running_node(tmp_path, "a", *BRIDGE, env=env) as a,
            running_node(tmp_path, "b", *BRIDGE, "--bootstrap", a.bootstrap, env=env) as b,
        ):
            keys = {node.name: node.get("/api/v1/bridge")["import_key"] for node in (a, b)}
            for node, other in ((a, b), (b, a)):
                finding = told(node, "import-keys", "degraded")
                assert finding["evidence"] == [f"{each.name}: {keys[each.name]}" for each in (node, other)]
            assert f"connected to {server.url}" in ask(a).document["summary"]


def test_plain_clients_without_a_bridge_and_what_a_bridge_refused(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats").start() as server:
        env = env_of(tmp_path, NATS_URL=server.url)
        with running_node(tmp_path, "a", env=env) as agent:
            wait_until("the agent's sidecar is connected", lambda: agent.get("/api/v1/carriers")["broker"]["connected"])

            def ignored() -> bool:
                publish(server.url, FORMING, b"not json")
                return ask(agent).get("no-bridge") is not None

            wait_until("a plain message came by", ignored)
            assert "p2pnode bridge" in told(agent, "no-bridge", "degraded")["fix"]
            trust = {"P2PNODE_TRUST_ORCHESTRATORS": agent.bootstrap.partition("/p2p/")[2]}
            with running_node(
                tmp_path,
                "b",
                *BRIDGE,
                "--bootstrap",
                agent.bootstrap,
                env=env_of(tmp_path, NATS_URL=server.url, **trust),
            ) as bridge:
                wait_until("the bridge is known", lambda: ask(agent).get("no-bridge") is None)

                def refused() -> bool:
                    publish(server.url, FORMING, b"not json")
                    return ask(bridge).get("bridge-refused") is not None

                wait_until("it was refused", refused)
                finding = told(bridge, "bridge-refused", "note", lambda report: report.exit_code == 0)
                assert finding["evidence"][0].startswith(f"{FORMING}: json: not JSON")
                key = bridge.get("/api/v1/bridge")["import_key"]
                assert key in told(bridge, "import-key-untrusted", "note")["evidence"][0]


def test_a_rollback_to_http_where_nobody_takes_it_is_failed(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with (
        running_node(tmp_path, "a", env=env_of(tmp_path, P2PNODE_ROLLBACK="http")) as a,
        running_node(tmp_path, "b", "--bootstrap", a.bootstrap, env=env),
    ):
        finding = told(a, "no-road", "failed", lambda report: report.exit_code == 2)
        assert "carriers.rollback is http" in finding["title"]
        assert "rollback=off" in finding["fix"]


def test_a_bridge_that_is_alone_is_degraded_while_nats_carries(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats").start() as server:
        env = env_of(tmp_path, NATS_URL=server.url)
        with running_node(tmp_path, "b", *BRIDGE, env=env) as bridge:
            told(bridge, "no-source", "degraded", lambda report: report.exit_code == 1)
            server.kill()
            told(bridge, "no-source", "failed", lambda report: report.exit_code == 2)
            assert ask(bridge).get("nats-unreachable") is not None


def test_what_a_full_stream_refuses_waits_is_told_and_goes_when_there_is_room(tmp_path: Path) -> None:
    """The server passes on to core subscribers, the bridge among them, what its stream then refuses."""

    async def set_limit(messages: int, *, first: bool = False) -> int:
        client = await nats.connect(server.url)
        try:
            manager = client.jsm()
            config = StreamConfig("SMALL", subjects=["hmmm.>"], max_msgs=messages, discard=DiscardPolicy.NEW)
            info = await (manager.add_stream(config) if first else manager.update_stream(config))
            return info.state.messages
        finally:
            await client.close()

    with NatsServer(tmp_path / "nats").start() as server:
        asyncio.run(set_limit(1, first=True))
        with running_node(tmp_path, "b", *BRIDGE, env=env_of(tmp_path, NATS_URL=server.url)) as bridge:
            for text in ("one", "two", "three"):
                done = command("pub", THREAD, text, "--api", bridge.api, env=env_of(tmp_path))
                assert done.returncode == 0, done.stderr
            told(bridge, "nats-jetstream-full", "degraded")
            wait_until("it was tried more than once", lambda: exports(bridge)["failed"] > 2)
            assert exports(bridge)["pending"] == 2
            asyncio.run(set_limit(100))
            wait_until("all went", lambda: exports(bridge)["pending"] == 0)
            assert asyncio.run(set_limit(100)) == 3
            wait_until("the trouble is over", lambda: ask(bridge).get("nats-jetstream-full") is None)


def exports(bridge: Node) -> Any:
    return next(each for each in bridge.get("/api/v1/bridge")["exports"] if each["topic"] == "hmmm.*")
