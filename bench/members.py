"""Large simulated fleets: how soon all know, and what it costs.

    python -m bench.members [--seed 1] [--loss 0.0] [--cold 1000] [--shared 5000] [--json FILE]

Runs the production membership, link planner and reconciliation in virtual time (`p2pnode.testing.membership`), so
the figures do not depend on the machine; only the seconds that a run takes do. `cold`: all start within ten seconds
and know one address. `shared`: all know each other at the start, and keep only what differs from one shared table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from p2pnode.testing.membership import Happening, MembersReport, MembersScenario, simulate_members

HEADINGS = ("fleet", "happening", "doubted s", "all know s", "false", "links", "idle msg/s", "idle B/s", "run s")


def cold(nodes: int, loss: float) -> MembersScenario:
    """All from nothing; then a calm, one more member, and one death."""
    return MembersScenario(
        nodes=nodes, seconds=75, start_seconds=10, loss=loss, happenings=(Happening(55, "start"), Happening(65, "kill"))
    )


def shared(nodes: int, loss: float) -> MembersScenario:
    """All know each other; one more member, one death, one host without power."""
    happenings = (Happening(12, "start"), Happening(16, "kill"), Happening(22, "vanish"))
    return MembersScenario(nodes=nodes, known=True, seconds=33, loss=loss, happenings=happenings)


def idle(nodes: int, loss: float) -> MembersScenario:
    """All know each other and nothing happens; exchanges have found their longest pause."""
    return MembersScenario(nodes=nodes, known=True, seconds=240, loss=loss, idle_from_seconds=120)


def rows(name: str, scenario: MembersScenario, report: MembersReport, took: float) -> list[tuple[str, ...]]:
    fewest, mean, most = report.links
    calm = bool(scenario.idle_from_seconds)
    costs = (f"{report.idle_messages:.2f}", f"{report.idle_bytes:.0f}") if calm else ("", "")
    false = f"{report.false_suspicions}/{report.false_deaths}"
    lines: list[tuple[str, ...]] = []
    for each in report.outcomes:
        doubted = "" if each.kind == "look" else _seconds(each.doubted)
        links = f"{fewest}-{mean:.1f}-{most}"
        lines.append((name, each.kind, doubted, _seconds(each.settled), false, links, *costs, f"{took:.0f}"))
    return lines or [(name, "", "", "", false, f"{fewest}-{mean:.1f}-{most}", *costs, f"{took:.0f}")]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in [HEADINGS, *lines]) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [HEADINGS, *lines]
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.members", description="simulated fleets in virtual time")
    parser.add_argument("--cold", type=int, default=1000, help="members that start from nothing; 0: none")
    parser.add_argument("--shared", type=int, default=5000, help="members that know each other already; 0: none")
    parser.add_argument("--loss", type=float, default=0.0, help="share of messages lost")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args(arguments)
    lines: list[tuple[str, ...]] = []
    documents = []
    for name, make, nodes in (
        ("cold", cold, options.cold), ("shared", shared, options.shared), ("idle", idle, options.cold),
    ):  # fmt: skip
        if not nodes:
            continue
        scenario = make(nodes, options.loss)
        start = time.monotonic()
        report = simulate_members(scenario, options.seed)
        took = time.monotonic() - start
        lines += rows(f"{name} {nodes}", scenario, report, took)
        documents.append({"fleet": name, "nodes": nodes, "loss": options.loss, "seconds": took, **asdict(report)})
        print(table(lines[-max(1, len(report.outcomes)) :]), file=sys.stderr, flush=True)
    print(table(lines))
    if options.json:
        options.json.write_text(json.dumps(documents, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
