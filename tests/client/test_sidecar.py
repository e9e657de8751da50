"""The client and a real sidecar; the example of the documentation, run as it stands."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pnode.client import Client, Message
from p2pnode.errors import CallerError, Conflict, InvalidRequest, NotFound
from tests.client.flavours import Connect, Scenario
from tests.e2e.harness import Node, environment, running_node, start_node, stop, wait_until

# httpcore 1.0 leaves a Unix socket that did not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

Run = Callable[[Scenario], None]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "agent.py"
SAMPLE = ROOT / "tests" / "samples" / "opportunity.json"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> object:
    directory = tmp_path_factory.mktemp("pair")
    with running_node(directory, "one") as one, running_node(directory, "two", "--bootstrap", one.bootstrap) as two:
        yield one, two


def test_what_one_publishes_the_other_reads(run: Run, pair: tuple[Node, Node]) -> None:
    one, two = pair

    async def scenario(connect: Connect) -> None:
        async with connect(one.api) as sender, connect(two.api) as reader:
            assert (await sender.get("node"))["name"] == "one"
            assert {peer["name"] for peer in await reader.get("peers")} == {"one", "two"}
            first = await sender.publish("hmmm.client", {"n": 1}, headers={"Council-ID": "Zürich"})
            again = await sender.publish("hmmm.client", b"\xff", idempotency_key=first.id)
            same = await sender.publish("hmmm.client", b"\xff", idempotency_key=first.id)
            assert (same.id, same.seqno, same.duplicate) == (again.id, again.seqno, True)
            messages = reader.subscribe("hmmm.client", start="start")
            found: dict[str, Message[Any]] = {}
            while not {first.id, again.id} <= found.keys():
                message = await messages.next()
                found[message.id] = message
            await messages.close()
        assert found[first.id].payload["n"] == 1
        assert found[first.id].headers == {"Council-ID": "Zürich"}
        assert found[first.id].origin_name == "one"
        assert found[again.id].payload == b"\xff"

    # Until the other follows it, there is nobody to send to.
    two.get("/api/v1/topics/hmmm.client/messages")
    run(scenario)


def test_what_a_sidecar_refuses_is_named(run: Run, pair: tuple[Node, Node]) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(pair[0].api) as client:
            with pytest.raises(InvalidRequest) as caught:
                await client.publish("no topic", {})
            assert [fault.field for fault in caught.value.faults] == ["topic"]

    run(scenario)


def test_a_wrong_token_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("right\n")
    flags = ("--api", "tcp:0.0.0.0:0", "--api-token-file", str(tmp_path / "token"))
    with running_node(tmp_path, "guarded", *flags) as node:
        (port,) = [int(api.rpartition(":")[2]) for api in node.get("/api/v1/node")["api"] if api.startswith("tcp:")]

        async def scenario(connect: Connect) -> None:
            async with connect(f"tcp:127.0.0.1:{port}", token="wrong") as client:
                with pytest.raises(CallerError, match="token"):
                    await client.get("node")
                messages = client.subscribe("t")
                with pytest.raises(CallerError, match="token"):
                    await messages.next()
                await messages.close()
            async with connect(f"tcp:127.0.0.1:{port}", token="right") as client:
                assert (await client.get("node"))["name"] == "guarded"

        run(scenario)


def test_a_durable_subscription_outlives_sidecar_and_agent(run: Run, tmp_path: Path) -> None:
    async def first_agent(connect: Connect) -> None:
        async with connect(keepers[-1].api) as client:
            for number in range(3):
                await client.publish("hmmm.durable", {"n": number})
            messages = client.subscribe("hmmm.durable", "agent", "start")
            assert [(await messages.next()).payload["n"] for _ in range(2)] == [0, 1]
            third = await messages.next()
            assert third.payload["n"] == 2
            await messages.close()

    async def second_agent(connect: Connect) -> None:
        async with connect(keepers[-1].api) as client:
            messages = client.subscribe("hmmm.durable", "agent")
            first, second = await messages.next(), await messages.next()
            assert (first.payload["n"], second.payload["n"]) == (0, 1)
            await messages.ack(second)
            await messages.close()

    async def third_agent(connect: Connect) -> None:
        async with connect(keepers[-1].api) as client:
            messages = client.subscribe("hmmm.durable", "agent")
            third = await messages.next()
            assert third.payload["n"] == 2
            stop(keepers[-1], signal.SIGKILL)
            keepers.append(start_node(tmp_path, "keeper"))
            await messages.ack(third)
            await client.publish("hmmm.durable", {"n": 3})
            assert (await messages.next()).payload["n"] == 3
            await messages.close()

    keepers = [start_node(tmp_path, "keeper")]
    try:
        wait_until("it answers", keepers[0].answers)
        run(first_agent)
        run(second_agent)
        run(third_agent)
    finally:
        stop(keepers[-1])


def test_a_council_is_created_watched_and_claimed(run: Run, tmp_path: Path) -> None:
    fields = {"project_name": "Test", "repository": "https://example.org/t", "core_roles": ["tpm", "architect"]}

    async def scenario(connect: Connect) -> None:
        async with connect(node.api) as client:
            made = await client.call("create_council", idempotency_key="once", **fields)
            again = await client.call("create_council", fields, idempotency_key="once")
            council_id = made["council_id"]
            assert (again["council_id"], again["duplicate"], made["status"]) == (council_id, True, "forming")
            watch = client.watch(council_id)
            await client.call("claim", council_id, "tpm", agent_id="first")
            council = await watch.next()
            while council["missing"] != ["architect"]:
                council = await watch.next()
            assert council["mine"] == ["tpm"]
            with pytest.raises(Conflict) as caught:
                await client.call("claim", council_id, "tpm", agent_id="second")
            assert (caught.value.reason, caught.value.facts["agent_id"]) == ("filled", "first")
            with pytest.raises(NotFound):
                await client.call("release", council_id, "architect", agent_id="first")
            await client.call("report_status", council_id, "cancelled", message="enough")
            while council["status"] != "cancelled":
                council = await watch.next()
            await watch.close()
            assert [each["council_id"] for each in await client.call("councils", "cancelled")] == [council_id]
            claims = (await client.call("council", council_id))["claims"]
            assert [(each["role_name"], each["agent_id"]) for each in claims] == [("tpm", "first")]
            with pytest.raises(Conflict, match="cancelled"):
                await client.call("claim", council_id, "architect", agent_id="first")
            with pytest.raises(InvalidRequest) as invalid:
                await client.call("create_council", {**fields, "core_roles": [{"role_name": ""}]})
            assert [fault.field for fault in invalid.value.faults] == ["core_roles[0].role_name"]

    with running_node(tmp_path, "whoosh", "--role", "whoosh") as node:
        run(scenario)


def test_the_example_is_an_agent(tmp_path: Path) -> None:
    env = environment(tmp_path / "run")
    node = start_node(tmp_path, "sidecar")
    log = tmp_path / "agent.log"
    agents = []

    def start_agent() -> subprocess.Popen[bytes]:
        with open(log, "ab") as file:
            agent = subprocess.Popen(
                [sys.executable, str(EXAMPLE)],
                env={**env, "P2PNODE_API": node.api, "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        agents.append(agent)
        return agent

    def form(number: int) -> None:
        council = json.loads(SAMPLE.read_text()) | {"council_id": f"5b0c7a52-6d0e-4a43-9a68-0d1c3f6f2e{number:02}"}
        with Client(node.api) as client:
            client.publish("councils.forming", council)

    def claims() -> list[dict[str, Any]]:
        # The owner's decisions are on the topic too.
        return [each["payload"] for each in node.messages("councils.claims") if "claimed_at" in each["payload"]]

    def claimed(count: int) -> None:
        def all_there() -> bool:
            assert agents[-1].poll() is None, log.read_text()
            return len({each["council_id"] for each in claims()}) == count

        wait_until(f"{count} councils are claimed", all_there)

    try:
        wait_until("it answers", node.answers)
        form(1)
        agent = start_agent()
        claimed(1)
        form(2)
        claimed(2)
        agent.kill()
        agent.wait()
        stop(node, signal.SIGKILL)
        node = start_node(tmp_path, "sidecar")
        wait_until("it answers", node.answers)
        start_agent()
        form(3)
        claimed(3)
        assert len(claims()) == 3
    finally:
        for each in agents:
            each.kill()
            each.wait()
        stop(node)


def test_the_readme_shows_the_example_and_it_has_twenty_lines() -> None:
    code = EXAMPLE.read_text()
    assert len(code.splitlines()) <= 20
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code in blocks
