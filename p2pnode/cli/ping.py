"""`ping`: how long a peer takes to answer, over libp2p."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, object_of, sidecar_options
from p2pnode.errors import NoSidecar, Unavailable
from p2pnode.local.http import Client, quote, refusal

ANSWER_SECONDS: Final = 15.0
"""A sidecar gives its peer ten seconds; it says itself when they are over."""


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One try.

    Args:
        peer_id: whom it went to; None while no try was answered.
        rtt_ms: None when it was lost.
        linked: False: there is no link, and a handshake was timed instead.
        problem: why it was lost.
    """

    number: int
    peer_id: str | None
    name: str | None
    rtt_ms: float | None
    linked: bool = True
    problem: str = ""

    def document(self) -> dict[str, Any]:
        lost = {"problem": self.problem} if self.rtt_ms is None else {"linked": self.linked}
        return {
            "number": self.number,
            "peer_id": self.peer_id,
            "name": self.name,
            "rtt_ms": self.rtt_ms,
            **lost,
        }


@click.command()
@click.argument("peer")
@click.option("--count", type=click.IntRange(min=1), metavar="N", default=4, show_default=True, help="How many tries.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0),
    metavar="S",
    default=1.0,
    show_default=True,
    help="Seconds from the end of one try to the next.",
)
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "jsonl"]), default="table")
@sidecar_options
def ping(peer: str, count: int, interval: float, form: str, api: str | None, api_token_file: str | None) -> int:
    """Round trips to PEER: a peer id, a unique beginning of one, or a name.

    A member without a link is reached by a handshake, and said so. Exit code 0: none was lost; 1: some were, or
    nobody is called so.
    """
    client = connect(api, api_token_file)
    done: list[RoundTrip] = []
    try:
        for trip in round_trips(client, peer, count, interval):
            done.append(trip)
            if form == "jsonl":
                output.print_json_line(trip.document())
            elif form == "table":
                sys.stdout.write(f"{_line(trip, peer)}\n")
            sys.stdout.flush()
    finally:
        if done:
            _print_summary(done, form)
    return 1 if any(trip.rtt_ms is None for trip in done) else 0


def round_trips(client: Client, peer: str, count: int, interval: float) -> Iterator[RoundTrip]:
    """Try `count` times; the peer is looked up by the first try that is answered.

    Raises:
        P2PNodeError: nobody is called so, or several are; or the sidecar does not answer.
    """
    asked, name, peer_id = peer, None, None
    for number in range(1, count + 1):
        if number > 1:
            time.sleep(interval)
        try:
            told = _try(client, asked)
        except Unavailable as error:
            yield RoundTrip(number, peer_id, name, None, problem=error.detail)
            continue
        asked = peer_id = str(told["peer_id"])
        name = told.get("name")
        yield RoundTrip(number, peer_id, name, told["rtt_ms"], linked=told.get("linked") is not False)


def _try(client: Client, peer: str) -> dict[str, Any]:
    response = client.request("POST", f"/api/v1/peers/{quote(peer)}/ping", body=b"", timeout_seconds=ANSWER_SECONDS)
    if response.status != 200:
        raise refusal(response)
    told = object_of(response.json(), "a round trip")
    if not isinstance(told.get("peer_id"), str) or not isinstance(told.get("rtt_ms"), (int, float)):
        raise NoSidecar("the sidecar's answer about a round trip is not understood", hint="is it of the same version?")
    return told


def _line(trip: RoundTrip, peer: str) -> str:
    who = output.cell(trip.name or trip.peer_id or peer)
    if trip.rtt_ms is None:
        return f"{trip.number}  {who}  {output.paint('lost', 'red')}: {output.clean(trip.problem)}"
    return (
        f"{trip.number}  {who}  {output.milliseconds(trip.rtt_ms)}{'' if trip.linked else '  no link: by a handshake'}"
    )


def _median(times: list[float]) -> float:
    """Of one or more; `statistics` would cost a command more time than all its other imports."""
    ordered = sorted(times)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else round((ordered[middle - 1] + ordered[middle]) / 2, 3)


def _print_summary(done: list[RoundTrip], form: str) -> None:
    times = [trip.rtt_ms for trip in done if trip.rtt_ms is not None]
    lost = len(done) - len(times)
    last = done[-1]
    rtt = {"min": min(times), "median": _median(times), "max": max(times)} if times else None
    if form == "table":
        spread = "".join(f", {word} {output.milliseconds(value)}" for word, value in (rtt or {}).items())
        who = f"{output.cell(last.name)} {output.cell(last.peer_id)}" if last.peer_id else "nothing came back"
        sys.stdout.write(f"{len(done)} tries, {lost} lost{spread}; {who}\n")
        return
    document = {"peer_id": last.peer_id, "name": last.name, "tries": len(done), "lost": lost, "rtt_ms": rtt}
    if form == "jsonl":
        output.print_json_line({"summary": document})
    else:
        output.print_json({**document, "round_trips": [trip.document() for trip in done]})
