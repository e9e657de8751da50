"""Subscribing: what is asked for, what is given out, and what happens when the sidecar goes."""

from __future__ import annotations

import base64
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.client.following import REMEMBERED_IDS, Following
from p2pnode.errors import CallerError, InvalidRequest, NoSidecar, NotFound, TooBusy
from p2pnode.local.sse import MAX_EVENT_BYTES
from tests.client.flavours import AnySubscription, Connect, Scenario
from tests.client.server import Request, Script, Server, answer, event, serving, stream_head

# httpcore 1.0 leaves a Unix socket that did not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

Run = Callable[[Scenario], None]
EVENTS = "/api/v1/topics/t/events"
ACK = "/api/v1/subscriptions/agent/ack"


def streams(*parts: bytes | None) -> Script:
    """The first connection gets the first part and so on, None is a refusal; the last one stays open. Takes acks."""
    numbers = itertools.count()

    def say(request: Request) -> Iterator[bytes]:
        if request.method == "POST":
            yield answer(200, {})
            return
        number = next(numbers)
        part = parts[number]
        yield answer(503, {}) if part is None else stream_head() + part
        if number == len(parts) - 1:
            request.gone.wait()

    return say


async def take(messages: AnySubscription, count: int) -> list[int]:
    """The numbers in the next messages."""
    return [(await messages.next()).payload["number"] for _ in range(count)]


def asked(server: Server) -> list[Request]:
    return [request for request in server.requests if request.method == "GET"]


def acks(server: Server) -> list[Any]:
    return [(request.path, request.json()) for request in server.requests if request.method == "POST"]


def test_a_message_has_all_that_its_document_says(run: Run, tmp_path: Path) -> None:
    packed = {"payload": base64.b64encode(b"\x00\xff").decode(), "encoding": "base64", "content_type": "image/png"}
    named = {"origin_name": "chorus-1", "published_at": "2026-01-01T00:00:00.000000001Z", "late": True}

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t")
            first, second = await messages.next(), await messages.next()
            await messages.close()
        assert (first.id, first.topic, first.origin, first.origin_name) == ("origin-1", "t", "origin", "chorus-1")
        assert (first.payload, first.headers, first.late) == ({"number": 1}, {"A": "b"}, True)
        assert first.published_at == "2026-01-01T00:00:00.000000001Z"
        assert (second.payload, second.content_type, second.late) == (b"\x00\xff", "image/png", False)
        assert second.document["encoding"] == "base64"

    with serving(tmp_path, streams(event(1, headers={"A": "b"}, **named) + event(2, **packed))) as server:
        run(scenario)


def test_without_a_name_it_resumes_after_the_last_message(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", start="start")
            assert await take(messages, 3) == [1, 2, 3]
            await messages.close()

    with serving(tmp_path, streams(event(1) + event(2), event(3))) as server:
        run(scenario)
        first, second = asked(server)
        assert (first.path, first.query) == (EVENTS, {"from": "start"})
        assert "last-event-id" not in first.headers
        assert (second.query, second.headers["last-event-id"]) == ({}, "origin-2")


def test_with_a_name_the_sidecar_keeps_the_place_and_is_told_what_was_handled(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            first = await messages.next()
            await messages.ack(first)
            assert await take(messages, 1) == [2]
            await messages.close()

    with serving(tmp_path, streams(event(1), event(2))) as server:
        run(scenario)
        assert [request.query for request in asked(server)] == [{"subscription": "agent", "from": "now"}] * 2
        assert all("last-event-id" not in request.headers for request in asked(server))
        assert acks(server) == [(ACK, {"id": "origin-1"})]


def test_a_message_is_given_out_once_and_acknowledged_again_when_it_comes_again(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            await messages.ack(await messages.next())
            assert await take(messages, 2) == [2, 3]
            await messages.close()

    again = event(1) + event(2)
    with serving(tmp_path, streams(again + event(2), again, again + event(3))) as server:
        run(scenario)
        # The second was given out and not acknowledged: that is the agent's to do.
        assert acks(server) == [(ACK, {"id": "origin-1"})] * 3


def test_only_a_named_subscription_can_be_acknowledged(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t")
            message = await messages.next()
            with pytest.raises(CallerError, match="name"):
                await messages.ack(message)
            await messages.close()

    with serving(tmp_path, streams(event(1))) as server:
        run(scenario)


def test_an_acknowledgement_waits_while_the_sidecar_is_away(run: Run, tmp_path: Path) -> None:
    refused = iter([answer(503, {}), answer(507, {}), b"", answer(429, {}), answer(204, {})])

    def say(request: Request) -> Iterator[bytes]:
        if request.method == "POST":
            yield next(refused)
        else:
            yield stream_head() + event(1)
            request.gone.wait()

    async def scenario(connect: Connect) -> None:
        async with connect(server.api, timeout=0.2) as client:
            messages = client.subscribe("t", "agent")
            await messages.ack(await messages.next())
            await messages.close()

    with serving(tmp_path, say) as server:
        run(scenario)
        assert len(acks(server)) == 5


def test_a_message_that_was_given_up_is_given_out_again_when_it_is_tried_again(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            await messages.nack(await messages.next(), "cannot read it")
            assert await take(messages, 1) == [1]
            await messages.close()

    with serving(tmp_path, streams(event(1), event(1))) as server:
        run(scenario)
        path = "/api/v1/subscriptions/agent/nack"
        assert acks(server) == [(path, {"id": "origin-1", "reason": "cannot read it"})]


def test_a_message_that_is_no_longer_kept_does_not_stop_the_agent(run: Run, tmp_path: Path) -> None:
    def say(request: Request) -> Iterator[bytes]:
        if request.method == "POST":
            yield answer(422, {"detail": "unknown message"})
        else:
            yield stream_head() + event(1) + event(2)
            request.gone.wait()

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            await messages.ack(await messages.next())
            assert await take(messages, 1) == [2]
            await messages.close()

    with serving(tmp_path, say) as server:
        run(scenario)


def test_who_is_replaced_by_another_reader_ends(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            with pytest.raises(CallerError, match="another reader took over subscription agent"):
                await messages.next()
            await messages.close()

    def say(_request: Request) -> Iterator[bytes]:
        yield stream_head() + b"event: replaced\ndata: {}\n\n"

    with serving(tmp_path, say) as server:
        run(scenario)
        assert len(asked(server)) == 1


def test_a_refused_acknowledgement_is_raised(run: Run, tmp_path: Path) -> None:
    def say(request: Request) -> Iterator[bytes]:
        if request.method == "POST":
            yield answer(404, {"detail": "no such subscription"})
        else:
            yield stream_head() + event(1)
            request.gone.wait()

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            message = await messages.next()
            with pytest.raises(NotFound, match="no such subscription"):
                await messages.ack(message)
            await messages.close()

    with serving(tmp_path, say) as server:
        run(scenario)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(event(2)[:-1], id="half an event"),
        pytest.param(event(2)[:20], id="half an id"),
        pytest.param(b"\x00\xff garbage \r\n\r\n\n\n" * 9, id="garbage"),
        pytest.param(b"data: no JSON\n\ndata: [1]\n\ndata: {}\n\nevent: other\ndata: x\n\n", id="no messages"),
        pytest.param(b"event: lost\ndata: {}\n\n", id="lost"),
        pytest.param(None, id="503"),
    ],
)
def test_a_broken_stream_costs_no_message(
    run: Run, tmp_path: Path, broken: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            assert await take(messages, 3) == [1, 2, 3]
            await messages.close()

    with serving(tmp_path, streams(event(1), broken, event(2) + event(3))) as server:
        run(scenario)
        assert len(asked(server)) == 3


@pytest.mark.parametrize("flood", [b"data: " + b"x" * 70_000 + b"\n", b"x" * 70_000])
def test_an_endless_event_is_cut(run: Run, tmp_path: Path, flood: bytes) -> None:
    calm = streams(event(1), event(2))
    floods = iter([True])

    def say(request: Request) -> Iterator[bytes]:
        if next(floods, False):
            yield stream_head() + event(0)
            yield from itertools.repeat(flood)
        yield from calm(request)

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t", "agent")
            assert await take(messages, 3) == [0, 1, 2]
            await messages.close()

    with serving(tmp_path, say) as server:
        run(scenario)


def test_a_restarted_sidecar_is_found_again(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api, timeout=0.2) as client:
            messages = client.subscribe("t", "agent")
            assert await take(messages, 1) == [1]
            server.stop()
            server.start_again()
            assert await take(messages, 1) == [2]
            await messages.close()

    def say(request: Request) -> Iterator[bytes]:
        yield stream_head() + event(len(asked(server)))
        request.gone.wait()

    with serving(tmp_path, say) as server, caplog.at_level(logging.WARNING):
        run(scenario)
    assert "reconnecting" in caplog.text


def test_a_sidecar_that_forgot_the_last_message_is_read_from_its_oldest(run: Run, tmp_path: Path) -> None:
    def say(request: Request) -> Iterator[bytes]:
        if "last-event-id" in request.headers:
            yield answer(422, {"detail": "not kept here"})
        else:
            yield stream_head() + event(1)
            if request.query == {"from": "start"}:
                yield event(2)
                request.gone.wait()

    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t")
            assert await take(messages, 2) == [1, 2]
            await messages.close()

    with serving(tmp_path, say) as server:
        run(scenario)
        assert [request.query for request in asked(server)] == [{"from": "now"}, {}, {"from": "start"}]


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        pytest.param(answer(401, {}), CallerError, id="401"),
        pytest.param(answer(404, {}), NotFound, id="404"),
        pytest.param(answer(422, {}), InvalidRequest, id="422"),
        pytest.param(answer(429, {}), TooBusy, id="429"),
        pytest.param(answer(200, {}), NoSidecar, id="no event stream"),
        pytest.param(b"garbage\r\n\r\n", NoSidecar, id="garbage"),
    ],
)
def test_a_first_connection_that_fails_is_raised(
    run: Run, tmp_path: Path, refusal: bytes, error: type[Exception]
) -> None:
    def say(_request: Request) -> Iterator[bytes]:
        yield refusal

    async def scenario(connect: Connect) -> None:
        async with connect(server.api, timeout=0.3) as client:
            messages = client.subscribe("t", "agent")
            with pytest.raises(error):
                await messages.next()
            await messages.close()

    with serving(tmp_path, say) as server:
        run(scenario)


def test_a_dead_socket_is_raised_at_the_timeout(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(f"unix:{tmp_path}/dead.sock", timeout=0.2) as client:
            messages = client.subscribe("t")
            with pytest.raises(NoSidecar, match=r"dead\.sock"):
                await messages.next()
            await messages.close()

    run(scenario)


def test_a_closed_client_ends_its_subscriptions(run: Run, tmp_path: Path) -> None:
    async def scenario(connect: Connect) -> None:
        async with connect(server.api) as client:
            messages = client.subscribe("t")
            assert await take(messages, 1) == [1]

    with serving(tmp_path, streams(event(1) + event(2))) as server:
        run(scenario)


def test_line_ends_and_packets_may_lie_anywhere() -> None:
    for ends in (b"\n", b"\r\n", b"\r"):
        stream = (b": hello\n\n" + event(1) + b"\n\n: \n\n" + event(2)).replace(b"\n", ends)
        for size in (1, 2, 3, 7, len(stream)):
            following = Following("t", None, "now", 1)
            found = []
            for at in range(0, len(stream), size):
                found += following.feed(stream[at : at + size])[0]
            assert [document["id"] for document in found] == ["origin-1", "origin-2"], (ends, size)


@pytest.mark.parametrize(
    ("end", "error"),
    [(b"data: " + b"x" * MAX_EVENT_BYTES + b"\n\n", NoSidecar), (b"event: replaced\ndata: {}\n\n", CallerError)],
)
def test_what_comes_with_the_end_of_a_stream_comes_again(end: bytes, error: type[Exception]) -> None:
    following = Following("t", None, "now", 1)
    following.feed(event(1))
    with pytest.raises(error):
        following.feed(event(2) + end)
    following.path()
    assert following.headers()[b"Last-Event-ID"] == b"origin-1"
    assert [document["id"] for document in following.feed(event(2))[0]] == ["origin-2"]


def test_what_is_remembered_is_bounded() -> None:
    following = Following("t", "agent", "now", 1)
    for number in range(REMEMBERED_IDS + 10):
        assert len(following.feed(event(number))[0]) == 1
    assert following.feed(event(10))[0] == []
    assert len(following.feed(event(9))[0]) == 1


def test_what_waits_for_its_end_is_bounded() -> None:
    following = Following("t", "agent", "now", 1)
    for _ in range(MAX_EVENT_BYTES // 65536 + 1):
        assert following.feed(b"x" * 65536) == ([], [])
    with pytest.raises(NoSidecar, match="an event of more than"):
        following.feed(b"x")
