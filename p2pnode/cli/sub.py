"""`sub`: follow a topic, across restarts of the sidecar."""

from __future__ import annotations

import base64
import binascii
import json
import sys
import time
from collections.abc import Generator
from contextlib import closing
from datetime import datetime
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, sidecar_options
from p2pnode.errors import Degraded, InvalidRequest, NoSidecar, Unavailable
from p2pnode.local.http import Client, NotASidecar, Response, quote, refusal
from p2pnode.local.sse import Event, MalformedStream, events

SILENCE_SECONDS: Final = 60.0
"""A sidecar sends a comment every 15 s: three missed, and nobody is there any more."""
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 2.0
REMEMBERED_IDS: Final = 10_000
"""Ids printed lately: a sidecar that lost its history is read from the start again, and nothing is printed twice."""
SHOWN_CHARACTERS: Final = 2000
"""Of a payload on a terminal; the other formats have it whole."""


@click.command()
@click.argument("topic")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["json", "jsonl", "raw"]),
    help="json: indented documents; jsonl: one line each; raw: payloads only, as published, text and JSON each "
    "ending a line. Default: a readable line on a terminal, else jsonl.",
)
@click.option("--from", "start", metavar="start|now|ID", default="now", show_default=True, help="Where to begin.")
@click.option(
    "--subscription",
    metavar="NAME",
    help="Keep the place under this name: what was printed is acknowledged, the rest comes again next time.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="End after S seconds; exit 1 with --count.",
)
@sidecar_options
def sub(
    topic: str,
    form: str | None,
    start: str,
    subscription: str | None,
    count: int | None,
    timeout: float | None,
    api: str | None,
    api_token_file: str | None,
) -> int:
    """Follow TOPIC: every message this sidecar has or gets."""
    deadline = None if timeout is None else time.monotonic() + timeout
    form = form or ("line" if output.for_people() else "jsonl")
    shown = 0
    follower = Follower(connect(api, api_token_file), topic, start, deadline, subscription=subscription)
    try:
        with closing(follower.events()) as messages:
            for message in messages:
                show(message, form)
                sys.stdout.flush()
                follower.acknowledge(message)
                shown += 1
                if shown == count:
                    return 0
    except OutOfTime:
        if count is not None:
            raise Degraded(f"{shown} of {count} messages on {topic} within {timeout:g} s") from None
    return 0


class OutOfTime(Exception):
    """The time `--timeout` gave is up."""


class Follower:
    """Reads a topic's events, reconnects where they break off, and says so on stderr.

    Args:
        start: `start`, `now` or a message id.
        deadline: on the monotonic clock; None: for ever.
        subscription: a durable one, which keeps its place until `acknowledge`; None: none.
    """

    def __init__(
        self, client: Client, topic: str, start: str, deadline: float | None, *, subscription: str | None = None
    ) -> None:
        self._client = client
        self._topic = topic
        self._start = start
        self._deadline = deadline
        self._subscription = subscription
        self._last_id = ""
        self._seen: dict[str, None] = {}

    def events(self) -> Generator[Event]:
        """Messages, each id once.

        Raises:
            OutOfTime: the deadline passed.
            NoSidecar: none answers the first time; later ones are waited for.
            P2PNodeError: the sidecar refused.
        """
        connected = told = False
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                for event in self._connection(again=connected):
                    connected, told = True, False
                    if event is not None:
                        wait = FIRST_RETRY_SECONDS
                        yield event
                why = "the sidecar ended the stream"
            except NotASidecar:
                raise
            except (NoSidecar, Unavailable) as error:
                if self._is_over():
                    raise OutOfTime from error
                if not connected:
                    raise
                why = error.detail
            if not told:
                output.note(f"{why}; reconnecting")
            told = True
            self._pause(wait)
            wait = min(wait * 2, LAST_RETRY_SECONDS)

    def _connection(self, *, again: bool) -> Generator[Event | None]:
        """One connection's messages, after a None that says it stands."""
        path = f"/api/v1/topics/{quote(self._topic)}/events"
        headers = {"Accept": "text/event-stream"}
        if self._subscription is not None:
            path += f"?from={quote(self._start)}&subscription={quote(self._subscription)}"
        elif self._last_id:
            headers["Last-Event-ID"] = self._last_id
        else:
            path += f"?from={quote(self._start)}"
        with self._client.stream(
            path, headers=headers, deadline=self._deadline, silence_seconds=SILENCE_SECONDS
        ) as stream:
            if stream.status != 200:
                error = refusal(Response(stream.status, stream.headers, b"".join(stream.chunks)))
                if not (again and self._last_id and not self._subscription and isinstance(error, InvalidRequest)):
                    raise error
                output.note(f"the sidecar no longer has message {self._last_id}; reading on from the oldest it has")
                self._last_id, self._start = "", "start"
                return
            if not stream.headers.get("content-type", "").startswith("text/event-stream"):
                raise NotASidecar(f"what answers at {self._client.address} does not send events")
            if again:
                output.note("reconnected")
            yield None
            try:
                for event in events(stream.chunks):
                    if event.id:
                        self._last_id = event.id
                    if event.kind == "lost":
                        output.note(f"lost: {_lost(event.data)}")
                    elif event.kind == "replaced":
                        raise Degraded(
                            f"another reader of the subscription {self._subscription} took over",
                            hint="one stream reads a subscription at a time; choose another --subscription",
                        )
                    elif event.kind == "message" and self._is_new(event.id):
                        yield event
                    elif event.kind == "message":
                        self.acknowledge(event)  # printed before, but the acknowledgement did not get through
            except MalformedStream as error:
                raise NotASidecar(f"what {self._client.address} sends is not understood: {error}") from error

    def acknowledge(self, event: Event) -> None:
        """Tell the sidecar that a message was printed; without a subscription nothing.

        An acknowledgement that does not get through is no loss: the message comes again, and is acknowledged then.

        Raises:
            P2PNodeError: the sidecar refused: somebody deleted the subscription.
        """
        if self._subscription is None or not event.id:
            return
        try:
            response = self._client.request(
                "POST",
                f"/api/v1/subscriptions/{quote(self._subscription)}/ack",
                body=json.dumps({"id": event.id}).encode(),
                headers={"Content-Type": "application/json"},
            )
        except NoSidecar as error:
            output.note(f"not acknowledged: {error.detail}")
            return
        if response.status not in (200, 429, 503):
            raise refusal(response)

    def _is_new(self, message_id: str) -> bool:
        if not message_id:
            return True
        if message_id in self._seen:
            return False
        self._seen[message_id] = None
        if len(self._seen) > REMEMBERED_IDS:
            del self._seen[next(iter(self._seen))]
        return True

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _pause(self, seconds: float) -> None:
        if self._deadline is not None:
            seconds = min(seconds, max(self._deadline - time.monotonic(), 0.0))
        time.sleep(seconds)
        if self._is_over():
            raise OutOfTime


def show(event: Event, form: str) -> None:
    """Print one message as `line`, `json`, `jsonl` or `raw`."""
    if form == "jsonl" and "\n" not in event.data:
        output.print_json_text(event.data)
        return
    try:
        document = json.loads(event.data)
    except ValueError as error:
        raise NotASidecar("the sidecar sent a message that is no JSON") from error
    if not isinstance(document, dict):
        raise NotASidecar("the sidecar sent a message that is no JSON object")
    if form == "jsonl":
        output.print_json_line(document)
    elif form == "json":
        output.print_json(document)
    elif form == "raw":
        payload, is_text = _payload(document)
        sys.stdout.flush()
        sys.stdout.buffer.write(payload + (b"\n" if is_text and not payload.endswith(b"\n") else b""))
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(_line(document) + "\n")


def payload_text(document: dict[str, Any]) -> str:
    """A message's payload on one line, harmless on a terminal; of what is no text, how much there is of what."""
    payload, is_text = _payload(document)
    try:
        text = output.clean(payload.decode().rstrip("\n"))
    except UnicodeDecodeError:
        is_text, text = False, ""
    return text if is_text or text else f"({len(payload)} bytes of {output.cell(document.get('content_type'))})"


def _line(document: dict[str, Any]) -> str:
    text, size = payload_text(document), len(_payload(document)[0])
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}… ({size} bytes; -o jsonl shows all)"
    origin = document.get("origin_name") or document.get("origin")
    parts = (
        (_clock(document.get("published_at") or document.get("received_at")), "dim"),
        (output.cell(origin), "bold"),
        (output.cell(document.get("topic")), ""),
        (output.cell(document.get("carrier")), "cyan"),
        (output.cell(document.get("seqno")), "dim"),
        (text, ""),
    )
    return " ".join(output.paint(part, style) for part, style in parts)


def _payload(document: dict[str, Any]) -> tuple[bytes, bool]:
    """The payload as bytes, and whether it is JSON or text."""
    payload = document.get("payload")
    if document.get("encoding") != "base64":
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace"), True
    try:
        return base64.b64decode(str(payload), validate=True), str(document.get("content_type")).startswith("text/")
    except binascii.Error as error:
        raise NotASidecar("the sidecar sent a payload that is no base64") from error


def _clock(timestamp: Any) -> str:
    """The local time of day, to the millisecond."""
    seconds = output.epoch_seconds(timestamp)
    if seconds is None:
        return output.UNKNOWN
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _lost(data: str) -> str:
    """What a `lost` event tells, in words."""
    try:
        told = json.loads(data)
    except ValueError:
        told = data
    number = told.get("lost") if isinstance(told, dict) else told
    return f"{output.cell(number)} messages came faster than they were read and are no longer kept"
