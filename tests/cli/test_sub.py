"""`sub`: forms, where it begins and ends, and what it does when the sidecar goes away."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator

import pytest

from p2pnode.cli.sub import show
from p2pnode.local.sse import Event
from tests.cli.documents import message, message_event
from tests.cli.running import Run
from tests.local.fake import Answer, Clock, FakeSidecar, document_answer, event_stream, problem

PATH = "/api/v1/topics/councils.forming/events"
EVENTS = {"Content-Type": "text/event-stream"}


@pytest.fixture
def sub(run: Run, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("p2pnode.cli.sub.FIRST_RETRY_SECONDS", 0.001)
    return lambda *arguments: run("sub", "councils.forming", "--api", sidecar.api, *arguments)


def numbers(text: str) -> list[int]:
    return [json.loads(line)["payload"]["number"] for line in text.splitlines()]


def open_stream(sidecar: FakeSidecar, *parts: str) -> Answer:
    """Events, and then nothing for as long as the test runs."""

    def body() -> Iterator[bytes]:
        yield from (part.encode() for part in parts)
        sidecar.stop.wait()

    return Answer(body(), 200, EVENTS, "chunked")


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_piped_it_prints_one_document_a_line_as_it_came(sub: Run, sidecar: FakeSidecar, framing: str) -> None:
    parts = [": hello\n\n", message_event(1), message_event(2), message_event(3)]
    sidecar.on("GET", PATH, event_stream(*parts, framing="close" if framing == "close" else "chunked"))
    outcome = sub("--count", "2")
    assert (outcome.code, outcome.err) == (0, "")
    assert [json.loads(line) for line in outcome.out.splitlines()] == [message(1), message(2)]


def test_count_ends_an_open_stream(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", PATH, open_stream(sidecar, message_event(1)))
    assert numbers(sub("--count", "1").out) == [1]


def test_json_is_indented_and_whole(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", PATH, event_stream(message_event(1)))
    out = sub("-o", "json", "--count", "1").out
    assert json.loads(out) == message(1)
    assert out.startswith("{\n  ")


def test_a_document_over_several_data_lines_is_one_line_of_jsonl(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", PATH, event_stream('id: a-1\ndata: {"id": "a-1",\ndata: "x": 2}\n\n'))
    assert sub("--count", "1").out == '{"id":"a-1","x":2}\n'


def test_raw_is_the_payload_as_published(run: Run, sub: Run, sidecar: FakeSidecar) -> None:
    def encoded(data: bytes, content_type: str) -> dict[str, str]:
        return {"payload": base64.b64encode(data).decode(), "encoding": "base64", "content_type": content_type}

    sidecar.on(
        "GET",
        PATH,
        event_stream(
            message_event(1, {"a": "é"}),
            message_event(2, **encoded(b"text", "text/plain")),
            message_event(3, **encoded(b"line\n", "text/plain; charset=utf-8")),
            message_event(4, **encoded(b"\x00\x01", "application/octet-stream")),
        ),
    )
    assert sub("-o", "raw", "--count", "4").out == '{"a":"é"}\ntext\nline\n\x00\x01'


@pytest.mark.parametrize("start", ["start", "now", "12D3KooWchorus-1-17"])
def test_where_to_begin_is_asked_of_the_sidecar(sub: Run, sidecar: FakeSidecar, start: str) -> None:
    sidecar.on("GET", PATH, event_stream(message_event(1)))
    sub("--from", start, "--count", "1")
    assert sidecar.requests[0].path == f"{PATH}?from={start}"
    assert "last-event-id" not in sidecar.requests[0].headers


def test_after_a_break_it_goes_on_behind_the_last_message(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", PATH, event_stream(message_event(1), message_event(2)), event_stream(message_event(3)))
    outcome = sub("--count", "3")
    assert (outcome.code, numbers(outcome.out)) == (0, [1, 2, 3])
    assert sidecar.requests[1].headers["last-event-id"] == "12D3KooWchorus-1-2"
    assert outcome.err == "the sidecar ended the stream; reconnecting\nreconnected\n"


def test_a_restarting_sidecar_is_waited_for(sub: Run, sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sidecar.api.removeprefix("unix:")

    def stop_listening() -> Iterator[bytes]:
        yield message_event(1).encode()
        os.rename(path, f"{path}.away")

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            os.rename(f"{path}.away", path)

    monkeypatch.setattr("time.sleep", pause)
    first = Answer(stop_listening(), 200, EVENTS, "chunked")
    sidecar.on("GET", PATH, first, event_stream(message_event(2)))
    outcome = sub("--count", "2")
    assert (outcome.code, numbers(outcome.out)) == (0, [1, 2])
    assert pauses[0] < pauses[1] < pauses[2]
    assert outcome.err.splitlines() == ["the sidecar ended the stream; reconnecting", "reconnected"]


def test_a_sidecar_that_lost_its_history_is_read_from_the_start_without_doubles(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on(
        "GET",
        PATH,
        event_stream(message_event(1), message_event(2)),
        problem(422, "not kept here"),
        event_stream(message_event(2), message_event(3)),
    )
    outcome = sub("--count", "3")
    assert numbers(outcome.out) == [1, 2, 3]
    assert "no longer has message 12D3KooWchorus-1-2" in outcome.err
    assert sidecar.requests[2].path == f"{PATH}?from=start"


def test_lost_messages_are_told_on_stderr(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", PATH, event_stream('event: lost\ndata: {"lost": 7}\n\n', message_event(1)))
    outcome = sub("--count", "1")
    assert numbers(outcome.out) == [1]
    assert outcome.err.startswith("lost: 7 messages")


def test_events_of_unknown_kinds_are_not_messages(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", PATH, event_stream("event: weather\ndata: rain\n\n", message_event(1)))
    assert numbers(sub("--count", "1").out) == [1]


def test_time_running_out_is_good_alone_and_not_found_with_count(
    sub: Run, sidecar: FakeSidecar, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show_and_let_time_pass(event: Event, form: str) -> None:
        show(event, form)
        clock.advance(60)

    monkeypatch.setattr("p2pnode.cli.sub.show", show_and_let_time_pass)
    sidecar.on("GET", PATH, lambda _: open_stream(sidecar, message_event(1)))
    alone = sub("--timeout", "60")
    assert (alone.code, numbers(alone.out), alone.err) == (0, [1], "")
    counted = sub("--timeout", "60", "--count", "2")
    assert (counted.code, numbers(counted.out)) == (1, [1])
    assert counted.err == "error: 1 of 2 messages on councils.forming within 60 s\n"


def test_time_running_out_while_the_sidecar_is_away_ends_it(
    sub: Run, sidecar: FakeSidecar, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: clock.advance(60))
    sidecar.on("GET", PATH, event_stream(message_event(1)))
    assert sub("--timeout", "60", "--count", "2").code == 1


def test_a_refusal_is_told_and_ends_it(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", "/api/v1/topics/a%20b/events", problem(422, "the topic is invalid"))
    outcome = run("sub", "a b", "--api", sidecar.api)
    assert (outcome.code, outcome.err) == (64, "error: the topic is invalid\n")


def test_too_many_followers_is_an_error_at_first_and_waited_for_later(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("GET", PATH, problem(429, "too many followers"))
    assert sub("--count", "1").code == 2
    sidecar.on("GET", PATH, event_stream(message_event(1)), problem(429, "too many"), event_stream(message_event(2)))
    assert numbers(sub("--count", "2").out) == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"hello", 200, {"Content-Type": "text/plain"}),
        event_stream("data: [1]\n\n"),
        event_stream("data: nonsense\n\n"),
        event_stream('data: {"payload": "%%%", "encoding": "base64"}\n\n'),
    ],
)
def test_what_is_not_understood_is_no_sidecars(sub: Run, sidecar: FakeSidecar, answer: Answer) -> None:
    sidecar.on("GET", PATH, answer)
    assert sub("-o", "raw").code == 3


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--timeout", "0"], ["-o", "table"], ["more"]])
def test_wrong_usage_exits_64(sub: Run, arguments: list[str]) -> None:
    assert sub(*arguments).code == 64


ACK = "/api/v1/subscriptions/mine/ack"


def acknowledged(sidecar: FakeSidecar) -> list[str]:
    return [json.loads(request.body)["id"] for request in sidecar.requests if request.path == ACK]


def test_a_subscription_acknowledges_what_was_printed(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", ACK, document_answer({"pending": 0}))
    sidecar.on("GET", PATH, event_stream(message_event(1), message_event(2)), event_stream(message_event(3)))
    outcome = sub("--subscription", "mine", "--from", "start", "--count", "3")
    assert (outcome.code, numbers(outcome.out)) == (0, [1, 2, 3])
    assert acknowledged(sidecar) == [f"12D3KooWchorus-1-{number}" for number in (1, 2, 3)]
    asked = [request for request in sidecar.requests if request.method == "GET"]
    assert {request.path for request in asked} == {f"{PATH}?from=start&subscription=mine"}
    assert all("last-event-id" not in request.headers for request in asked)


def test_what_comes_again_is_acknowledged_again_and_not_printed(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", ACK, problem(503, "starting"), document_answer({"pending": 0}))
    sidecar.on("GET", PATH, event_stream(message_event(1)), event_stream(message_event(1), message_event(2)))
    outcome = sub("--subscription", "mine", "--count", "2")
    assert numbers(outcome.out) == [1, 2]
    assert acknowledged(sidecar) == [f"12D3KooWchorus-1-{number}" for number in (1, 1, 2)]


def test_who_is_replaced_ends_and_does_not_take_it_back(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", ACK, document_answer({"pending": 0}))
    sidecar.on("GET", PATH, event_stream(message_event(1), "event: replaced\ndata: {}\n\n"))
    outcome = sub("--subscription", "mine", "--count", "2")
    assert (outcome.code, numbers(outcome.out)) == (1, [1])
    assert "another reader of the subscription mine took over" in outcome.err
    assert len([request for request in sidecar.requests if request.method == "GET"]) == 1


def test_a_refused_acknowledgement_ends_it(sub: Run, sidecar: FakeSidecar) -> None:
    sidecar.on("POST", ACK, problem(404, "there is no subscription 'mine'"))
    sidecar.on("GET", PATH, event_stream(message_event(1)))
    outcome = sub("--subscription", "mine", "--count", "2")
    assert (outcome.code, outcome.err) == (1, "error: there is no subscription 'mine'\n")
