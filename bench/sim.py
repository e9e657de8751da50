"""Large simulated networks: hops, delay in units of link delay, duplicates, control bytes.

    python -m bench.sim [--nodes 1000 --nodes 5000] [--seed 1] [--loss 0.0] [--json FILE]

Runs the production router in virtual time (`p2pnode.testing`), so the figures do not depend on
the machine; only the seconds that a run takes do.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2pnode.core.gossipsub.params import Params
from p2pnode.testing import Report, Scenario, simulate

HEADINGS = (
    "nodes", "D", "loss", "messages", "missed", "hops mean", "hops max", "delay p50", "delay p99", "delay max",
    "dup/delivery", "control B/s/node", "links mean", "run s",
)  # fmt: skip


def run(nodes: int, loss: float, seed: int, seconds: float) -> tuple[Report, Params, float]:
    """One calm network of `nodes`; 50 ms links that differ by a fifth."""
    scenario = Scenario(
        name=f"calm-{nodes}", nodes=nodes, loss=loss, warmup_seconds=15, duration_seconds=seconds, latency_ms=50
    )
    params = Params().for_fleet(nodes)
    start = time.monotonic()
    return simulate(scenario, seed, params), params, time.monotonic() - start


def row(report: Report, params: Params, loss: float, took: float) -> tuple[str, ...]:
    nodes = report.name.partition("-")[2]
    return (
        nodes,
        str(params.d),
        f"{loss:g}",
        str(report.messages),
        f"{report.missed} of {report.due}",
        f"{report.hops_mean:.2f}",
        str(report.hops_max),
        f"{report.delay_p50:.2f}",
        f"{report.delay_p99:.2f}",
        f"{report.delay_max:.2f}",
        f"{report.duplicates:.2f}",
        f"{report.control_bytes:.0f}",
        f"{report.links[1]:.1f}",
        f"{took:.0f}",
    )


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in [HEADINGS, *rows]) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [HEADINGS, *rows]
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.sim", description="simulated networks in virtual time")
    parser.add_argument("--nodes", type=int, action="append", help="network size; repeatable (default 1000 and 5000)")
    parser.add_argument("--loss", type=float, action="append", help="share of RPCs lost; repeatable (default 0)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="virtual seconds of publishing at 1 message/s")
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args(arguments)
    rows: list[tuple[str, ...]] = []
    documents: list[dict[str, Any]] = []
    for nodes in options.nodes or [1000, 5000]:
        for loss in options.loss or [0.0]:
            report, params, took = run(nodes, loss, options.seed, options.seconds)
            rows.append(row(report, params, loss, took))
            documents.append({"nodes": nodes, "loss": loss, "d": params.d, "seconds": took, **asdict(report)})
            print(table(rows[-1:]), file=sys.stderr, flush=True)
    print(table(rows))
    for nodes in dict.fromkeys(document["nodes"] for document in documents):
        degree = Params().for_fleet(nodes).d
        floor = math.log(nodes) / math.log(degree - 1)
        print(f"a tree that fans out by D - 1 = {degree - 1} reaches {nodes} nodes in {floor:.1f} hops")
    if options.json:
        options.json.write_text(json.dumps(documents, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
