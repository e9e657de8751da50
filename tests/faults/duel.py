"""A node to attack, an honest neighbour it must go on delivering to, and what the attacks cost it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.harness import Node, have_all
from tests.faults.hostile import eventually

TOPIC = "hmmm.hostile"
BULK = "hmmm.bulk"
OPPORTUNITIES = "councils.forming"
RSS_ALLOWANCE_MIB = 150.0


@dataclass
class Duel:
    """The victim and its neighbour; `rss_mib` is the victim's at the start and after each attack."""

    victim: Node
    neighbour: Node
    directory: Path
    env: dict[str, str]
    rss_mib: list[float] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.victim.bootstrap

    def counted(self, verdict: str, reason: str) -> float:
        """How often the victim came to this; 0 when never."""
        # Labels are written in alphabetical order.
        return self.victim.metric(f'p2pnode_gossip_inbound_total{{reason="{reason}",verdict="{verdict}"}}')

    def broken(self, reason: str) -> float:
        """How many connections of the victim's ended so."""
        return self.victim.metric(f'p2pnode_connections_broken_total{{reason="{reason}"}}')

    def records_refused(self, reason: str) -> float:
        return self.victim.metric(f'p2pnode_member_records_refused_total{{reason="{reason}"}}')

    def entries(self, container: str) -> float:
        return self.victim.metric(f'p2pnode_router_entries{{container="{container}"}}')

    async def until_counted(self, verdict: str, reason: str, before: float, times: int = 1) -> None:
        await eventually(
            f"{verdict} {reason} is counted", lambda: self.counted(verdict, reason) >= before + times or None
        )

    def measure(self) -> None:
        assert self.victim.process is not None
        status = Path(f"/proc/{self.victim.process.pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        self.rss_mib.append(int(kib) / 1024)

    def assert_unharmed(self) -> None:
        """The victim is up, honest messages go both ways, and its memory is bounded."""
        assert self.victim.process is not None
        assert self.victim.process.poll() is None
        for sender, receiver in ((self.victim, self.neighbour), (self.neighbour, self.victim)):
            message_id = sender.publish_accepted(TOPIC, b"still here")
            have_all([receiver], TOPIC, {message_id}, 60)
        self.measure()
        grown = self.rss_mib[-1] - self.rss_mib[0]
        assert grown < RSS_ALLOWANCE_MIB, f"the victim grew by {grown:.0f} MiB: {self.rss_mib}"
