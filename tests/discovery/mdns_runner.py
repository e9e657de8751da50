"""Runs an `MdnsSource` and prints each of its reports as a line of JSON; ends with its standard input.

A line of standard input, `{"addrs": [...]}`, replaces what it announces.
"""

from __future__ import annotations

import json
import sys
from random import Random

import trio

from p2pnode.discovery.mdns import MdnsSource
from p2pnode.ports import SourceReport

TICK_SECONDS = 0.005


class Runner:
    """One source, and how long the event loop kept others waiting while it ran."""

    def __init__(self, options: dict[str, object]) -> None:
        self._addrs: list[str] = list(options["addrs"])  # type: ignore[call-overload]
        self._source = MdnsSource(
            str(options["peer_id"]),
            lambda: self._addrs,
            interfaces=options["interfaces"],  # type: ignore[arg-type]
            fingerprint=str(options["fingerprint"]),
            rng=Random(),
        )
        self._lag_seconds = 0.0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._measure)
            nursery.start_soon(self._source.run, self._report)
            rest = b""
            async with trio.lowlevel.FdStream(0) as stdin:
                async for chunk in stdin:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._addrs = json.loads(line)["addrs"]
            nursery.cancel_scope.cancel()

    async def _measure(self) -> None:
        while True:
            due = trio.current_time() + TICK_SECONDS
            await trio.sleep_until(due)
            self._lag_seconds = max(self._lag_seconds, trio.current_time() - due)

    def _report(self, report: SourceReport) -> None:
        line = {
            "places": [place.addr for place in report.places],
            "troubles": [[trouble.code, trouble.problem, trouble.fix] for trouble in report.troubles],
            "subject": report.subject,
            "ignored": dict(self._source.ignored),
            "lag_seconds": self._lag_seconds,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    trio.run(Runner(json.loads(sys.argv[1])).run)
