"""A fleet with a bridge and a NATS server: agents that know nothing else, a broker that comes late or refuses us."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.carriers.nats.server import Build, NatsServer
from tests.e2e.harness import Node, command, environment, running_node, wait_until
from tests.e2e.plain import UCXL, bridge_document, create_council, plain_agent, reads, sees

FORMING, STATUS = "chorus.councils.forming", "chorus.councils.*.status"
THREAD = "hmmm.e2e"
TOPICS = f"councils.forming,councils.claims,councils.status,{THREAD}"
JSON = {"Content-Type": "application/json"}
SERVERS = [
    pytest.param("current", True, id="JetStream"),
    pytest.param("current", False, id="core NATS"),
    pytest.param("debian", True, id="Debian's 2.9"),
]


def refused(bridge: Node) -> dict[str, str]:
    """Of the last refusals: reason and detail by subject."""
    return {each["subject"]: f"{each['reason']}: {each['detail']}" for each in bridge_document(bridge)["last_refused"]}


@contextmanager
def bridged_pair(directory: Path, url: str) -> Iterator[tuple[Node, Node, Node]]:
    """An orchestrator, an agent, and a bridge; all see all."""
    own = environment(directory / "run", P2PNODE_GOSSIP_TOPICS=TOPICS)
    env = {**own, "NATS_URL": url}
    with (
        running_node(directory, "whoosh", "--role", "whoosh", "--no-mdns", env=own) as whoosh,
        running_node(directory, "chorus", "--bootstrap", whoosh.bootstrap, "--no-mdns", env=own) as chorus,
        running_node(
            directory, "bridge", "--role", "bridge", "--bootstrap", whoosh.bootstrap, "--no-mdns", env=env
        ) as bridge,
    ):
        for node in (whoosh, chorus, bridge):
            wait_until(f"{node.name} sees all", partial(sees, node, 3))
        yield whoosh, chorus, bridge


@pytest.mark.parametrize(("build", "jetstream"), SERVERS)
def test_a_plain_nats_agent_takes_part_and_what_is_wrong_is_refused(
    tmp_path: Path, build: Build, jetstream: bool
) -> None:
    with (
        NatsServer(tmp_path / "nats", build=build, jetstream=jetstream).start() as server,
        plain_agent(tmp_path, server.url, FORMING, STATUS) as agent,
        bridged_pair(tmp_path, server.url) as (whoosh, chorus, bridge),
    ):
        wait_until("the bridge reads", lambda: reads(bridge))
        document = bridge_document(bridge)
        assert document["broker"]["jetstream"] is jetstream
        council = create_council(whoosh, "architect")
        [found] = wait_until("the agent has the opportunity", lambda: agent.heard(FORMING))
        assert json.loads(found["body"])["council_id"] == council
        headers = found["headers"]
        assert headers.pop("Published-At").endswith("Z")
        assert {name: headers[name] for name in ("Council-ID", "Project", "Repository", "UCXL-Address")} == {
            "Council-ID": council,
            "Project": "e2e",
            "Repository": "https://gitea.example/e2e",
            "UCXL-Address": UCXL,
        }

        subject = f"chorus.councils.{council}.status"
        agent.publish(
            subject, {"council_id": council, "status": "forming", "message": "at work"}, {"Status": "forming"}
        )

        def update(node: Node) -> Any:
            return [each for each in node.messages("councils.status") if each["payload"].get("message") == "at work"]

        for node in (bridge, whoosh, chorus):
            [message] = wait_until(f"{node.name} has the update", partial(update, node))
            assert message["origin"] == document["import_key"]
            assert message["headers"] == {"Status": "forming"}
            assert (message["carrier"] == "nats") is (node is bridge)

        wrong = {
            subject: {"council_id": council, "status": "sleeping"},
            f"chorus.councils.{council}.claims": "this is no JSON",
            "chorus.councils.no%token.status": {"council_id": "no%token", "status": "forming"},
        }
        for where, body in wrong.items():
            agent.publish(where, body)
        wait_until("all are refused", lambda: len(refused(bridge)) == 3)
        reasons = refused(bridge)
        told = ("'completed', 'failed', 'expired'", "carries JSON objects only", "nothing is imported from the subject")
        for where, words in zip(wrong, told, strict=True):
            assert words in reasons[where]
        assert bridge.metric("p2pnode_bridge_refused_total") == 3
        assert bridge.log is not None
        log = bridge.log.read_text()
        shown = command("bridge", "status", "--api", bridge.api, env=environment(tmp_path / "run"))
        assert shown.returncode == 0, shown.stderr
        for where in wrong:
            assert where in shown.stdout.decode()
            assert any("not imported from NATS" in line and where in line for line in log.splitlines())
        agent.publish(subject, {"council_id": council, "status": "forming", "message": "at work still"})
        wait_until("it goes on", lambda: len(chorus.messages("councils.status")) > len(update(chorus)))
        assert len(whoosh.messages("councils.forming")) == 1


def waiting_for_nats(bridge: Node) -> int:
    return sum(row["pending"] for row in bridge_document(bridge)["exports"])


def published(bridge: Node) -> int:
    return sum(row["published"] for row in bridge_document(bridge)["exports"])


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.soak)])
def test_what_is_published_while_the_broker_is_absent_waits_and_arrives_once(tmp_path: Path, seconds: float) -> None:
    server = NatsServer(tmp_path / "nats")
    with server, bridged_pair(tmp_path, server.url) as (whoosh, chorus, bridge):
        absent_until = time.monotonic() + seconds
        councils = {create_council(whoosh, "architect") for _ in range(3)}
        thoughts = {chorus.publish_accepted(THREAD, b'{"n": %d}' % n, JSON) for n in range(20)}
        wait_until("the bridge holds them", lambda: thoughts <= bridge.ids(THREAD))
        time.sleep(max(absent_until - time.monotonic(), 0))  # the broker is absent for so long
        ready = bridge.client.request("GET", "/ready", timeout_seconds=20)
        assert ready.status == 206
        assert published(bridge) == 0
        server.start()
        wait_until("all is published", lambda: reads(bridge) and not waiting_for_nats(bridge))
        with plain_agent(tmp_path, server.url, "--stored", FORMING, THREAD) as agent:
            wait_until("the stream has all", lambda: len(agent.read()) >= 1 + len(councils) + len(thoughts))
            assert sorted(json.loads(each["body"])["council_id"] for each in agent.heard(FORMING)) == sorted(councils)
            assert sorted(each["headers"]["Nats-Msg-Id"] for each in agent.heard(THREAD)) == sorted(thoughts)
            agent.publish(THREAD, {"from": "outside"})
            wait_until("the way in works too", lambda: len(whoosh.ids(THREAD)) == len(thoughts) + 1)
        wait_until("it is ready", lambda: bridge.client.request("GET", "/ready", timeout_seconds=20).status == 200)


def test_a_broker_that_refuses_the_bridge_is_named_and_the_bridge_lives(tmp_path: Path) -> None:
    config = 'authorization { user: "bridge", password: "right" }'
    with (
        NatsServer(tmp_path / "closed", config=config).start() as closed,
        NatsServer(tmp_path / "plain").start() as plain,
        running_node(tmp_path, "whoosh", "--role", "whoosh", "--no-mdns") as whoosh,
        ExitStack() as running,
    ):
        cases = {
            "password": (
                {"NATS_URL": closed.url, "NATS_USER": "bridge", "NATS_PASSWORD": "open-sesame"},
                "nats.password",
            ),
            "tls": ({"NATS_URL": plain.url.replace("nats://", "tls://")}, "does not use TLS"),
        }
        for name, (variables, words) in cases.items():
            env = environment(tmp_path / "run", **variables)
            flags = ("--role", "bridge", "--bootstrap", whoosh.bootstrap, "--no-mdns")
            bridge = running.enter_context(running_node(tmp_path, name, *flags, env=env))

            def says_why_once(bridge: Node = bridge, words: str = words) -> bool:
                response = bridge.client.request("GET", "/ready", timeout_seconds=20)
                return response.status == 206 and sum(words in why for why in response.json()["reasons"]) == 1

            wait_until(f"{name} says why, and once", says_why_once)
            status = command("bridge", "status", "--api", bridge.api, env=env)
            assert words in status.stdout.decode()
            assert "open-sesame" not in status.stdout.decode()
            assert status.returncode == 1
            sent = bridge.publish_accepted("councils.claims", b"{}", JSON)
            wait_until("gossip goes on", lambda sent=sent: sent in whoosh.ids("councils.claims"))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://broker:4222", "nats://HOST:PORT"),
        ("nats://broker:99999", "1 to 65535"),
        ("nats://", "nats://HOST:PORT"),
    ],
)
def test_a_bad_url_is_refused_at_the_start_with_the_key_and_what_to_write(tmp_path: Path, url: str, words: str) -> None:
    env = environment(tmp_path / "run", NATS_URL=url)
    checked = command("config", "check", env=env)
    started = command("bridge", "--data-dir", str(tmp_path / "bridge"), "--no-mdns", env=env)
    for done in (checked, started):
        assert done.returncode in (2, 64)
        said = (done.stdout + done.stderr).decode()
        assert "nats.url" in said
        assert "NATS_URL" in said
        assert words in said
