"""Members over NATS: meshes that know each other by their bridges, and what they do not fall for."""

from __future__ import annotations

import dataclasses
import json

import pytest
import trio

from p2pnode.core.membership.record import MemberState
from p2pnode.core.message import parse_message_id
from p2pnode.core.subjects import MEMBERS_SUBJECT
from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity
from p2pnode.node.bridge.meshes import FORGET_SECONDS, MAX_BRIDGES, ROLL_SECONDS
from p2pnode.node.bridge.rolls import AT, BRIDGE, ROLL, SIGNATURE, decode_part, encode_part, make_part
from p2pnode.wire.members import EncodedNews, encode_news, read_record
from tests.node.bridge.meshes import Meshes, alive, open_meshes
from tests.node.fakes import Running, until, verify_record

KEY = Identity(b"k" * 32)


async def joined(meshes: Meshes, *, bridges: int = 1, agents: int = 2) -> tuple[list[Running], list[Running]]:
    left, right = meshes.mesh(agents + 1, bridges), meshes.mesh(agents)
    meshes.fleet.start(*left, *right)
    await until(lambda: all(len(alive(each)) == len(side) for side in (left, right) for each in side))
    for running in (*left[:bridges], right[0]):
        meshes.bridge(running, KEY)
    await until(meshes.all_know_all)
    return left, right


async def test_two_meshes_know_each_others_members(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, right = await joined(meshes)
        await trio.sleep(120)
        assert meshes.all_know_all()
        assert left[1].members.is_beyond(right[1].peer_id)
        assert not left[1].members.is_beyond(left[2].peer_id)
        document = meshes.bridges[0].bridge.document()
        assert document["beyond"] == sorted(each.peer_id for each in right)
        (other,) = document["bridges"]
        assert (other["peer_id"], other["beyond"]) == (right[0].peer_id, True)
        assert other["heard_seconds_ago"] <= ROLL_SECONDS
        far = {each.peer_id for each in right}
        mine = {each.peer_id for each in left}
        late = [each for each in meshes.fleet.network.probes if each.at > 60 and each.peer in mine]
        assert not [each for each in late if each.addr.rpartition("/")[2] in far - {right[0].peer_id}]


async def test_a_member_that_comes_or_goes_is_told_of_to_the_other_side(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, right = await joined(meshes)
        new = meshes.add("chorus", [left[0].addr])
        meshes.separate([new], right)
        left.append(new)
        meshes.fleet.start(new)
        await until(meshes.all_know_all, 30)
        meshes.fleet.stop(new)
        left.remove(new)
        await until(lambda: all(each.members.all()[new.peer_id].state is MemberState.DEAD for each in right), 120)


async def test_two_bridges_of_one_mesh_find_nobody_beyond(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, right = await joined(meshes, bridges=2)
        await trio.sleep(60)
        assert meshes.all_know_all()
        for bridging in meshes.bridges[:2]:
            assert set(bridging.bridge.document()["beyond"]) == {each.peer_id for each in right}
        beyond = meshes.bridges[2].bridge.document()["beyond"]
        assert set(beyond) == {each.peer_id for each in left}
        assert left[0].members.own.beyond == left[1].members.own.beyond


async def test_three_meshes_are_one(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        sides = [meshes.mesh(1) for _ in range(3)]
        meshes.fleet.start(*(each for side in sides for each in side))
        for side in sides:
            meshes.bridge(side[0], KEY)
        await until(meshes.all_know_all, 60)
        await trio.sleep(120)
        assert meshes.all_know_all()


async def test_a_mesh_that_splits_in_two_stays_one_by_its_bridges(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        one = meshes.mesh(4, 2)
        meshes.fleet.start(*one)
        for running in one[:2]:
            meshes.bridge(running, KEY)
        await until(meshes.all_know_all)
        await trio.sleep(30)
        left, right = one[::2], one[1::2]
        meshes.separate(left, right)
        await trio.sleep(60)
        await until(meshes.all_know_all, 240)
        assert set(meshes.bridges[0].bridge.document()["beyond"]) == {each.peer_id for each in right}
        meshes.fleet.network.apart.clear()
        await until(lambda: meshes.bridges[0].bridge.document()["beyond"] == [], 240)
        await until(meshes.all_know_all, 60)


async def test_a_bridge_that_dies_vouches_for_nobody(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, _ = await joined(meshes)
        meshes.bridges[1].crash(meshes.fleet)
        await trio.sleep(FORGET_SECONDS + 5)
        assert meshes.bridges[0].bridge.document()["bridges"] == []
        assert left[0].members.own.beyond == b""
        await until(lambda: alive(left[1]) == {each.peer_id for each in left})


async def test_a_roll_names_those_of_its_own_side_alone(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, right = await joined(meshes)
        before = len(meshes.server.publications)
        await trio.sleep(2 * ROLL_SECONDS)
        told: dict[str, set[str]] = {}
        for each in meshes.server.publications[before:]:
            part = decode_part(each.headers, each.body, verify_record)
            records = [read_record(record, verify_record) for record in part.news().records]
            told.setdefault(part.bridge, set()).update(record.peer_id for record in records if record is not None)
        assert told == {side[0].peer_id: {each.peer_id for each in side} for side in (left, right)}


async def test_the_roll_of_a_dead_bridge_that_is_repeated_revives_nobody(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        await joined(meshes)
        last = next(p for p in reversed(meshes.server.publications) if p.headers[BRIDGE] == meshes.sides[1][0].peer_id)
        meshes.bridges[1].crash(meshes.fleet)
        for _ in range(10):
            await trio.sleep(6)
            meshes.server.publish(last.subject, last.body, last.headers)
        await trio.sleep(2)
        assert meshes.bridges[0].bridge.document()["bridges"] == []
        await trio.sleep(300)
        meshes.server.publish(last.subject, last.body, last.headers)
        await trio.sleep(5)
        assert meshes.bridges[0].bridge.document()["bridges"] == []
        assert meshes.bridges[0].bridge.document()["last_refused"][0]["reason"] == "stamp"


async def test_a_broker_that_is_away_for_a_moment_changes_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, _ = await joined(meshes)
        told = left[0].members.own.beyond
        for _ in range(5):
            meshes.server.kill()
            await trio.sleep(10)
            meshes.server.start()
            await trio.sleep(5)
            assert meshes.all_know_all()
        assert left[0].members.own.beyond == told


async def test_a_message_of_an_agent_is_stored_by_agents_of_the_other_mesh(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, right = await joined(meshes)
        said = await left[2].node.publish(
            "hmmm.talk", b'{"text": "hello"}', content_type="application/json", headers={}, idempotency_key=None
        )
        raw = left[2].store.raws[parse_message_id(said.id)]
        await until(lambda: raw in right[2].store.raws.values(), 10)
        document = meshes.bridges[0].bridge.document()
        published = {row["topic"]: row["published"] for row in document["exports"]}
        assert published["hmmm.*"] == 1
        assert json.loads(json.dumps(document)) == document


async def test_without_a_shared_key_one_bridge_signs_for_plain_clients(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        side = meshes.mesh(1, 2)
        meshes.fleet.start(*side)
        await until(meshes.all_know_all)
        for number, running in enumerate(side[:2]):
            meshes.bridge(running, Identity(bytes([number + 1]) * 32), is_shared=False)
        await trio.sleep(10)
        documents = {each.running.peer_id: each.bridge.document() for each in meshes.bridges}
        lowest = min(documents)
        assert {peer: document["importing"] for peer, document in documents.items()} == {
            peer: "all" if peer == lowest else "signed" for peer in documents
        }
        assert all("import_key_file" in " ".join(each.bridge.health_reasons()) for each in meshes.bridges)
        meshes.server.publish("hmmm.talk", b'{"text": "plain"}')
        await until(lambda: any(b"plain" in raw for raw in side[2].store.raws.values()))
        await trio.sleep(10)
        assert sum(b"plain" in raw for raw in side[2].store.raws.values()) == 1


async def test_a_bridge_says_why_it_is_not_well(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        (side,) = [meshes.mesh(1)]
        meshes.fleet.start(*side)
        meshes.server.kill()
        bridging = meshes.bridge(side[0], KEY)
        assert bridging.bridge.health_reasons() == ["bridge: nobody answers; start the server"]
        meshes.server.start()
        await until(lambda: bridging.bridge.health_reasons() == [])
        metrics = bridging.bridge.metrics()
        assert metrics["nats_connections"] == 1
        assert metrics["p2pnode_bridge_lag_seconds"] == 0
        assert metrics['chorus_nats_receive_total{subject="chorus.councils.>"}'] == 0


# -- what is sent by who means ill -----------------------------------------------------


async def test_a_roll_that_is_not_signed_by_its_bridge_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, right = await joined(meshes)
        victim, before = left[0], left[0].members.own.beyond
        body = encode_news(EncodedNews((left[2].members.own.signed,)))
        forged = Identity(b"f" * 32)
        part = make_part(right[0].peer_id, 1, 1, 2**62, KEY.peer_id, EncodedNews((left[2].members.own.signed,)))
        meshes.server.publish(MEMBERS_SUBJECT, body, encode_part(part, forged.sign))
        for headers in ({}, {BRIDGE: "x"}, {BRIDGE: right[0].peer_id, ROLL: "full 0/9"}):
            meshes.server.publish(MEMBERS_SUBJECT, body, headers)
        await trio.sleep(5)
        assert victim.members.own.beyond == before
        metrics = meshes.bridges[0].bridge.metrics()
        assert metrics['p2pnode_bridge_refused_total{way="members",reason="signature"}'] == 1
        assert meshes.all_know_all()


async def test_an_error_of_ours_costs_one_roll_only(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_meshes() as meshes:
        left, right = meshes.mesh(1), meshes.mesh(1)
        meshes.fleet.start(*left, *right)

        async def fail(*_: object) -> None:
            raise ZeroDivisionError

        good = left[0].members.take_news
        monkeypatch.setattr(left[0].members, "take_news", fail)
        for side in (left, right):
            meshes.bridge(side[0], KEY)
        await trio.sleep(3 * ROLL_SECONDS)
        assert alive(left[0]) == {each.peer_id for each in left}
        assert sum("could not be taken" in each.message for each in caplog.records) >= 2
        monkeypatch.setattr(left[0].members, "take_news", good)
        await until(meshes.all_know_all, 60)


async def test_more_bridges_than_can_be_are_refused(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        side = meshes.mesh(0)
        meshes.fleet.start(*side)
        bridging = meshes.bridge(side[0], KEY)
        await trio.sleep(2)
        for number in range(MAX_BRIDGES + 5):
            stranger = Identity(number.to_bytes(32, "big"))
            part = make_part(
                stranger.peer_id, 0, 0, meshes.server.wall_ns(), KEY.peer_id, EncodedNews((side[0].members.own.signed,))
            )
            meshes.server.publish(MEMBERS_SUBJECT, part.body, encode_part(part, stranger.sign))
            await trio.sleep(0.01)
        await trio.sleep(1)
        assert len(bridging.bridge.document()["bridges"]) == MAX_BRIDGES
        reasons = [each["reason"] for each in bridging.bridge.document()["last_refused"]]
        assert reasons.count("bridges") >= 4


async def test_members_of_our_own_that_a_stranger_lists_are_not_beyond(autojump_clock: trio.abc.Clock) -> None:
    """Linked ones are not; and they are told so as soon as the stranger is silent."""
    async with open_meshes() as meshes:
        side = meshes.mesh(3)
        meshes.fleet.start(*side)
        await until(meshes.all_know_all)
        bridging = meshes.bridge(side[0], KEY)
        await trio.sleep(5)
        stranger = Identity(b"s" * 32)
        records = tuple(each.members.own.signed for each in side)
        part = make_part(stranger.peer_id, 1, 1, meshes.server.wall_ns(), KEY.peer_id, EncodedNews(records))
        meshes.server.publish(MEMBERS_SUBJECT, part.body, encode_part(part, stranger.sign))
        await trio.sleep(10)
        beyond = set(bridging.bridge.document()["beyond"])
        assert not beyond & {*side[0].host.links(), side[0].peer_id}
        await trio.sleep(FORGET_SECONDS)
        assert bridging.bridge.document()["beyond"] == []
        assert meshes.all_know_all()


def test_a_part_of_a_roll_is_read_as_it_was_written() -> None:
    own = Identity(b"o" * 32)
    part = make_part(own.peer_id, 2, 3, 1_700_000_000_000_000_000, KEY.peer_id, EncodedNews((b"",)))
    headers = encode_part(part, own.sign)
    assert decode_part(headers, part.body, verify_record) == part
    news = dataclasses.replace(part, number=0, total=0)
    assert decode_part(encode_part(news, own.sign), part.body, verify_record) == news


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (BRIDGE, ""),
        (ROLL, "full 4/3"),
        (ROLL, "full 1/9999"),
        (ROLL, "full 1"),
        (AT, "-1"),
        (AT, "1" * 30),
        (SIGNATURE, "!"),
        (SIGNATURE, ""),
        (AT, "5"),
    ],
)
def test_a_part_with_a_wrong_header_is_refused(name: str, value: str) -> None:
    own = Identity(b"o" * 32)
    part = make_part(own.peer_id, 1, 3, 7, KEY.peer_id, EncodedNews((b"",)))
    headers = {**encode_part(part, own.sign), name: value}
    with pytest.raises(InvalidMessage):
        decode_part(headers, part.body, verify_record)


async def test_a_new_bridge_that_knows_everybody_contests_nobodys_side(autojump_clock: trio.abc.Clock) -> None:
    async with open_meshes() as meshes:
        left, right = await joined(meshes, agents=9)
        meshes.bridges[0].crash(meshes.fleet)
        new = meshes.add("bridge", [left[1].addr])
        meshes.separate([new], right)
        left[0] = new
        meshes.fleet.start(new)
        await until(lambda: meshes.everybody() <= alive(new), 60)  # by its neighbours, the other side too
        meshes.bridge(new, KEY)
        await until(meshes.all_know_all, 120)
        await trio.sleep(60)
        before = {each.peer_id: each.members.own.incarnation for side in (left, right) for each in side}
        await trio.sleep(60)
        assert meshes.all_know_all()
        assert set(meshes.bridges[-1].bridge.document()["beyond"]) == {each.peer_id for each in right}
        assert set(meshes.bridges[1].bridge.document()["beyond"]) == {each.peer_id for each in left}
        assert before == {each.peer_id: each.members.own.incarnation for side in (left, right) for each in side}
