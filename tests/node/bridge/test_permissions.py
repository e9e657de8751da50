"""The permissions of docs/bridge.md, at a real nats-server: enough for each, and nobody else speaks for a bridge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from p2pnode.carriers.nats import NatsBroker
from p2pnode.core.subjects import MEMBERS_SUBJECT, Subjects
from p2pnode.errors import Unavailable
from p2pnode.ports.roads import NatsMessage
from tests.carriers.nats.kit import Taken, connected, plain_publish, settings, until
from tests.carriers.nats.server import BUILDS, Build, NatsServer

SUBJECTS = Subjects("fleet")
CLAIMS = "chorus.councils.abc.claims"
DOCUMENT = Path(__file__).parents[3] / "docs" / "bridge.md"


def permissions() -> str:
    found = re.search(r"```\n(authorization \{.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None, "docs/bridge.md shows no permissions"
    return found[1].replace("<cluster_id>", "fleet")


async def denied(broker: NatsBroker, subject: str) -> bool:
    with trio.fail_after(30):
        try:
            await broker.publish(subject, b"{}", {})
        except Unavailable:
            return True
        return False


@pytest.mark.parametrize("build", BUILDS)
async def test_the_permissions_of_the_page_are_enough_and_keep_others_out(tmp_path: Path, build: Build) -> None:
    with NatsServer(tmp_path / "nats", build=build, config=permissions()).start() as server:
        bridge, sidecar, agent, whoosh = (
            NatsBroker(settings(server, user=user, password=f"{user}-secret", jetstream=jetstream))
            for user, jetstream in (("bridge", "on"), ("sidecar", "on"), ("agent", "off"), ("whoosh", "off"))
        )
        taken, heard, rolls = Taken(), Taken(), Taken()
        bridge.consume("b", SUBJECTS.roots(), taken.take)
        bridge.watch((*SUBJECTS.watched(), MEMBERS_SUBJECT), rolls.note)
        for each in (sidecar, agent):
            each.watch(SUBJECTS.watched(), heard.note)
        async with connected(bridge), connected(sidecar), connected(agent), connected(whoosh):
            await until("all is read once", lambda: all(each.caught_up for each in bridge.consumers()))
            for speaker in (bridge, sidecar):
                assert await speaker.publish(CLAIMS, b"{}", {}), "the stream has it"
            for speaker in (agent, whoosh):
                assert not await speaker.publish(CLAIMS, b"{}", {}), "it does not ask"
            for speaker in (bridge, sidecar, whoosh):
                await speaker.publish("chorus.councils.forming", b"{}", {})
            await until("the bridge took them", lambda: len(taken.messages) == 7)
            await until("so many were taken", lambda: sum(each.taken for each in bridge.consumers()) == 7)
            await until("both heard them", lambda: len(heard.messages) == 14)
            await until("acknowledged", lambda: not any(each.unacknowledged for each in bridge.consumers()))
            for each in (bridge, sidecar, agent, whoosh):
                assert each.state().code == "", each.state().problem
            assert "Violation" not in server.log
            assert await denied(agent, "chorus.councils.forming")
            assert await denied(bridge, "ops.other")
            for user in ("bridge", "agent"):
                delete = ("$JS.API.STREAM.DELETE.P2PNODE", b"", None)
                await plain_publish(server, [delete], user=user, password=f"{user}-secret")
            await until("both are refused", lambda: server.log.count("STREAM.DELETE") == 2)
            assert await bridge.publish(CLAIMS, b"{}", {}), "the stream is there"
            await bridge.publish(MEMBERS_SUBJECT, b"ours", {})
            for stranger in (sidecar, agent, whoosh):
                assert await denied(stranger, MEMBERS_SUBJECT)
            await bridge.publish(MEMBERS_SUBJECT, b"ours", {})
            await until("both are heard", lambda: len(of(rolls.messages, MEMBERS_SUBJECT)) >= 2)
            assert [each.body for each in of(rolls.messages, MEMBERS_SUBJECT)] == [b"ours", b"ours"]


def of(messages: list[NatsMessage], subject: str) -> list[NatsMessage]:
    return [each for each in messages if each.subject == subject]
