"""The carrier's server: one route, whatever strangers send."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from p2pnode.carriers.http.protocol import MESSAGES_PATH, authorization, carrier_key
from p2pnode.carriers.http.server import Carrier, CarrierLimits, Take, open_carrier
from p2pnode.core.message import MAX_MESSAGE_BYTES, SignedMessage
from p2pnode.errors import EnvironmentFault, StorageFull, Unavailable
from p2pnode.wire.pb.libp2p.v1.pubsub_pb2 import Message
from tests.carriers.http.clients import Got, ask, connect, parse, request, rest
from tests.node.stored import signed

MESSAGE = signed(1, 1)
KEY = b"k" * 32


async def store(_message: SignedMessage) -> str | None:
    return None


def says(word: str) -> Take:
    async def take(_message: SignedMessage) -> str | None:
        return word

    return take


def fails(error: Exception) -> Take:
    async def take(_message: SignedMessage) -> str | None:
        raise error

    return take


async def never(_message: SignedMessage) -> str | None:
    await trio.sleep_forever()
    raise AssertionError


@asynccontextmanager
async def opened(
    take: Take = store, *, key: bytes = b"", limits: CarrierLimits | None = None
) -> AsyncIterator[tuple[str, Carrier]]:
    with trio.fail_after(60):
        async with open_carrier("127.0.0.1:0", take, for_good={"signature"}, network_key=key, limits=limits) as carrier:
            yield carrier.addresses[0], carrier


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the server tells of no event
        await trio.sleep(0.005)


def with_topic(topic: str) -> bytes:
    message = Message.FromString(MESSAGE.raw)
    message.topic = topic
    return message.SerializeToString()


async def test_a_message_is_taken_byte_for_byte() -> None:
    taken: list[SignedMessage] = []

    async def take(message: SignedMessage) -> str | None:
        taken.append(message)
        return None

    async with opened(take) as (address, _):
        got = await ask(address, request(MESSAGE.raw))
    assert (got.status, got.document) == (200, {"stored": True})
    assert taken == [MESSAGE]


async def test_a_message_that_was_there_before_is_answered_as_held() -> None:
    async with opened(says("held")) as (address, _):
        got = await ask(address, request(MESSAGE.raw))
    assert (got.status, got.document) == (200, {"stored": False, "held": True})


@pytest.mark.parametrize(
    ("take", "status", "reason", "retry_after"),
    [
        (says("signature"), 422, "signature", None),
        (says("clock"), 503, "clock", "5"),
        (fails(Unavailable("not now", reason="stopping", retry_after_seconds=7.2)), 503, "stopping", "8"),
        (fails(Unavailable("never", retry_after_seconds=float("nan"))), 503, "unavailable", "3600"),
        (fails(StorageFull("the disk is full")), 507, "storage", None),
        (fails(EnvironmentFault("the disk is broken")), 507, "storage", None),
    ],
)
async def test_why_a_message_is_not_taken_is_said(
    take: Take, status: int, reason: str, retry_after: str | None
) -> None:
    async with opened(take) as (address, carrier):
        got = await ask(address, request(MESSAGE.raw))
    assert (got.status, got.document["status"], got.document["reason"]) == (status, status, reason)
    assert got.headers["content-type"] == "application/problem+json"
    assert got.headers.get("retry-after") == retry_after
    assert carrier.counters.answers == {reason: 1}
    assert carrier.counters.unexpected == 0


async def test_what_was_answered_is_counted_under_its_word_and_shown_as_metrics() -> None:
    async with opened(key=KEY, limits=CarrierLimits(connections=0)) as (address, carrier):
        async with await connect(address) as stream:
            await rest(stream)
        assert carrier.counters.metrics()["p2pnode_http_turned_away_total"] == 1
    async with opened(key=KEY) as (address, carrier):
        await ask(address, request(MESSAGE.raw))
        for body, key in ((MESSAGE.raw, KEY), (MESSAGE.raw, b"x"), (bytes(MAX_MESSAGE_BYTES + 1), KEY), (b"x", KEY)):
            await ask(address, request(body, Authorization=authorization(carrier_key(key), body)))
        await ask(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: carrier.counters.connections == 0)
    assert carrier.counters.metrics() == {
        'p2pnode_http_received_total{result="stored"}': 1,
        'p2pnode_http_received_total{result="unauthorized"}': 2,
        'p2pnode_http_received_total{result="oversize"}': 1,
        'p2pnode_http_received_total{result="protobuf"}': 1,
        'p2pnode_http_received_total{result="healthy"}': 1,
        "p2pnode_http_connections": 0,
        "p2pnode_http_turned_away_total": 0,
        "p2pnode_http_failures_total": 0,
    }


async def test_a_fault_of_ours_is_answered_and_logged_and_the_next_message_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults: list[Exception] = [ZeroDivisionError("planted")]

    async def take(_message: SignedMessage) -> str | None:
        if faults:
            raise faults.pop()
        return None

    async with opened(take) as (address, carrier):
        assert (await ask(address, request(MESSAGE.raw))).status == 500
        assert (await ask(address, request(MESSAGE.raw))).status == 200
    assert carrier.counters.unexpected == 1
    assert "planted" in caplog.text


async def test_a_message_that_is_not_stored_in_time_may_come_again() -> None:
    async with opened(never, limits=CarrierLimits(take_seconds=0.05)) as (address, _):
        got = await ask(address, request(MESSAGE.raw))
    assert (got.status, got.document["reason"]) == (503, "slow")


async def test_health_is_answered_without_a_proof_and_without_waiting_for_the_client_to_leave() -> None:
    async with opened(key=KEY, limits=CarrierLimits(drain_seconds=50)) as (address, carrier):
        async with await connect(address) as stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            got = parse(await rest(stream))
            await until(lambda: carrier.counters.connections == 0)
    assert (got.status, got.document) == (200, {"status": "healthy"})


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (request(path="/"), 404, "not-found"),
        (request(path=MESSAGES_PATH + "?x=1"), 404, "not-found"),
        (request(path="/p2pnode/v1/%6dessages"), 404, "not-found"),
        (request(method="GET"), 405, "method"),
        (request(method="OPTIONS"), 405, "method"),
        (request(method="POST", path="/health"), 405, "method"),
        (request(MESSAGE.raw, Content_Type="application/json"), 415, "media-type"),
        (request(MESSAGE.raw, without="Content-Type"), 415, "media-type"),
        (request(without="Content-Length"), 411, "length-required"),
        (request(b"0\r\n\r\n", without="Content-Length", Transfer_Encoding="chunked"), 411, "length-required"),
        (request(Content_Length=str(MAX_MESSAGE_BYTES + 1)), 413, "oversize"),
        (request(Content_Length="9" * 19), 413, "oversize"),
        (request(MESSAGE.raw, Content_Length="-1"), 400, "no-http"),
        (request(b""), 422, "from"),
        (request(b"\xff" * 50), 422, "protobuf"),
        (request(with_topic("p2pnode.members")), 422, "members"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "no-http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, "not-found"),
        (b"POST / HTTP/1.1\r\n\r\n", 400, "no-http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000 + b"\r\n\r\n", 431, "no-http"),
    ],
)
async def test_anything_else_gets_a_problem_document(data: bytes, status: int, reason: str) -> None:
    async with opened() as (address, carrier):
        got = await ask(address, data)
        assert (got.status, got.document["reason"]) == (status, reason)
        assert got.headers["content-type"] == "application/problem+json"
        assert (await ask(address, request(MESSAGE.raw))).status == 200
    assert carrier.counters.unexpected == 0


async def test_a_405_names_the_method() -> None:
    async with opened() as (address, _):
        assert (await ask(address, request(method="PUT"))).headers["allow"] == "POST"


async def test_the_sender_of_too_large_a_body_gets_to_see_why() -> None:
    async with opened() as (address, _):
        got = await ask(address, request(bytes(MAX_MESSAGE_BYTES + 400_000)))
    assert got.status == 413


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with opened() as (address, _), await connect(address) as stream:
        await stream.send_all(request(MESSAGE.raw, Expect="100-continue")[: -len(MESSAGE.raw)])
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(MESSAGE.raw)
        assert parse(await rest(stream)).status == 200


@pytest.mark.parametrize("sent", [request(MESSAGE.raw)[:20], request(MESSAGE.raw)[:-1]])
async def test_a_slow_sender_gets_408(sent: bytes) -> None:
    async with opened(limits=CarrierLimits(request_seconds=0.5)) as (address, _):
        got = await ask(address, sent)
    assert (got.status, got.document["reason"]) == (408, "timeout")


async def test_who_says_nothing_is_hung_up_on() -> None:
    async with opened(limits=CarrierLimits(request_seconds=0.05)) as (address, carrier):
        async with await connect(address) as stream:
            assert await rest(stream) == b""
        await until(lambda: carrier.counters.connections == 0)
    assert not carrier.counters.answers


@pytest.mark.parametrize("sent", [b"", request(MESSAGE.raw)[:20], request(MESSAGE.raw)[:-1]])
async def test_a_client_that_leaves_half_way_leaves_nothing_behind(sent: bytes) -> None:
    async with opened() as (address, carrier):
        async with await connect(address) as stream:
            await stream.send_all(sent)
            await until(lambda: carrier.counters.connections == 1)
        await until(lambda: carrier.counters.connections == 0)
        assert (await ask(address, request(MESSAGE.raw))).status == 200
    assert carrier.counters.unexpected == 0
    assert carrier.counters.answers == {"stored": 1}


@pytest.mark.parametrize(
    "proof",
    [
        None,
        "",
        "Bearer x",
        "P2PNode-MAC",
        "P2PNode-MAC \xe9",
        f"P2PNode-MAC {'0' * 64}",
        "P2PNode-MAC " + "\xe9" * 64,
        authorization(carrier_key(b"x" * 32), MESSAGE.raw),
        authorization(KEY, MESSAGE.raw),
        authorization(carrier_key(KEY), MESSAGE.raw + b"x"),
    ],
)
async def test_strangers_to_a_private_network_are_refused(proof: str | None) -> None:
    async with opened(fails(AssertionError("it was taken")), key=KEY) as (address, carrier):
        headers = {} if proof is None else {"Authorization": proof}
        got = await ask(address, request(MESSAGE.raw, **headers))
    assert (got.status, got.document["reason"]) == (401, "unauthorized")
    assert got.headers["www-authenticate"] == "P2PNode-MAC"
    assert carrier.counters.unexpected == 0


async def test_a_member_of_a_private_network_is_let_in() -> None:
    async with opened(key=KEY) as (address, _):
        proof = authorization(carrier_key(KEY), MESSAGE.raw)
        assert (await ask(address, request(MESSAGE.raw, Authorization=proof))).status == 200
        assert (await ask(address, request(MESSAGE.raw, Authorization=proof.lower()))).status == 200


async def test_a_stranger_without_proof_is_refused_before_the_body_is_read() -> None:
    async with opened(key=KEY) as (address, _), await connect(address) as stream:
        await stream.send_all(request(MESSAGE.raw)[: -len(MESSAGE.raw)])
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 401 ")


async def test_one_address_gets_so_many_connections_and_others_are_served_meanwhile() -> None:
    limits = CarrierLimits(connections=4, connections_each=2)
    async with opened(limits=limits) as (address, carrier):
        held = [await connect(address, f"127.0.0.{1 + each // 2}") for each in range(3)]
        await until(lambda: carrier.counters.connections == 3)
        over = await ask(address, request(MESSAGE.raw), "127.0.0.1")
        assert (over.status, over.headers["retry-after"]) == (503, "1")
        assert (await ask(address, request(MESSAGE.raw), "127.0.0.3")).status == 200
        held.append(await connect(address, "127.0.0.2"))
        await until(lambda: carrier.counters.connections == 4)
        assert (await ask(address, request(MESSAGE.raw), "127.0.0.3")).status == 503
        for stream in held:
            await stream.aclose()
        await until(lambda: carrier.counters.connections == 0)
        assert (await ask(address, request(MESSAGE.raw), "127.0.0.1")).status == 200
    assert carrier.counters.turned_away == 2


async def test_bodies_in_memory_are_bounded_and_given_back() -> None:
    big = request(bytes(50_000))
    async with opened(limits=CarrierLimits(buffered_bytes=60_000)) as (address, carrier):
        async with await connect(address) as first:
            await first.send_all(big[:-1])
            await until(lambda: carrier.counters.connections == 1)
            # The first one's bytes may still be on their way, so what is refused may be either of the two.
            got = await ask(address, big)
            assert got.status in (422, 503)
            await first.send_all(big[-1:])
            other = parse(await rest(first))
        assert sorted([got.status, other.status]) == [422, 503]
        assert (await ask(address, big)).status == 422


async def test_at_the_end_a_whole_request_gets_its_answer() -> None:
    started = trio.Event()
    go_on = trio.Event()

    async def take(_message: SignedMessage) -> str | None:
        started.set()
        await go_on.wait()
        return None

    answers: list[Got] = []

    async def client(address: str) -> None:
        answers.append(await ask(address, request(MESSAGE.raw)))

    async with trio.open_nursery() as nursery:
        async with opened(take, limits=CarrierLimits(grace_seconds=50)) as (address, _):
            nursery.start_soon(client, address)
            await started.wait()
            nursery.start_soon(_set_when_closed, address, go_on)
    assert [got.status for got in answers] == [200]


async def _set_when_closed(address: str, event: trio.Event) -> None:
    while True:
        try:
            await (await connect(address)).aclose()
        except OSError:
            break
        await trio.sleep(0.005)
    event.set()


async def test_at_the_end_neither_a_slow_sender_nor_a_slow_disk_holds_it_up() -> None:
    async with opened(never, limits=CarrierLimits(request_seconds=1e6, take_seconds=1e6)) as (address, carrier):
        silent, half, busy = [await connect(address) for _ in range(3)]
        await half.send_all(request(MESSAGE.raw)[:-1])
        await busy.send_all(request(MESSAGE.raw))
        await until(lambda: carrier.counters.connections == 3)
    for stream in (silent, half, busy):
        assert await rest(stream) == b""
        await stream.aclose()


async def test_an_error_inside_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with opened():
            raise ZeroDivisionError


async def test_an_address_in_use_is_named_with_what_to_do() -> None:
    async with opened() as (address, _):
        with pytest.raises(EnvironmentFault, match=f"(?s)carriers.listen {address}.*another program"):
            async with open_carrier(address, store, for_good=()):
                raise AssertionError("it opened")


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "a..b:0", f"{'a' * 70}.example:0"])
async def test_an_address_that_is_not_ours_is_named(listen: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"carriers.listen {listen}"):
        async with open_carrier(listen, store, for_good=()):
            raise AssertionError("it opened")


async def test_it_listens_on_ipv6() -> None:
    async with open_carrier("[::1]:0", store, for_good=()) as carrier:
        assert carrier.addresses[0].startswith("[::1]:")
        assert (await ask(carrier.addresses[0], request(MESSAGE.raw))).status == 200


async def test_bytes_changed_at_random_never_cause_a_fault_of_ours() -> None:
    random = Random(9)
    good = request(MESSAGE.raw)
    async with opened() as (address, carrier):
        for _ in range(150):
            data = bytearray(good)
            for _ in range(random.randint(1, 4)):
                at = random.randrange(len(data))
                data[at : at + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
            async with await connect(address) as stream:
                try:
                    await stream.send_all(bytes(data))
                    await stream.send_eof()
                except trio.BrokenResourceError:
                    pass
                await rest(stream)
        assert (await ask(address, good)).status == 200
    assert carrier.counters.unexpected == 0
    assert len(carrier.counters.answers) > 2
