"""What writing messages one after the other took, for tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HEADINGS = ("system", "callers", "durability", "writes/s", "p50 ms", "p99 ms", "max ms", "CPU µs")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one system, one number of callers, one durability.

    Args:
        durability: `full`, `normal`, or how the system calls it.
        cpu_us: user and system time of whoever writes for each message, callers in processes of their own not counted.
    """

    system: str
    callers: int
    durability: str
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float

    def row(self) -> tuple[str, ...]:
        times = (f"{value:.2f}" for value in (self.p50_ms, self.p99_ms, self.max_ms))
        rate, cpu = f"{self.per_second:,.0f}", f"{self.cpu_us:.0f}"
        return (self.system, str(self.callers), self.durability, rate, *times, cpu)


def figures(
    system: str, callers: int, durability: str, taken: Sequence[float], seconds: float, cpu_seconds: float
) -> Figures:
    """Of what each write took, in seconds, while `seconds` passed.

    Raises:
        ValueError: nothing was written.
    """
    if not taken:
        raise ValueError(f"{system} with {callers} callers ({durability}) wrote nothing in {seconds:.1f} s")
    ordered = sorted(taken)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
    cpu_us = cpu_seconds / len(ordered) * 1e6
    return Figures(system, callers, durability, len(ordered) / seconds, p50, p99, ordered[-1] * 1e3, cpu_us)


def median(rounds: Sequence[Figures]) -> Figures:
    """Each figure's median over the rounds of one case."""
    one = rounds[0]

    def middle(of: Callable[[Figures], float]) -> float:
        return statistics.median(map(of, rounds))

    return Figures(
        one.system,
        one.callers,
        one.durability,
        middle(lambda each: each.per_second),
        middle(lambda each: each.p50_ms),
        middle(lambda each: each.p99_ms),
        middle(lambda each: each.max_ms),
        middle(lambda each: each.cpu_us),
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in [headings, *rows]) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [headings, *rows]
    )
