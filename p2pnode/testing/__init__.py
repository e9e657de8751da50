"""A simulated gossip network in virtual time: the production `Router`, unmodified, on invented links.

Discrete events on one heap; nothing sleeps and nothing is random but by the seed, so a
failing run is replayed by its seed. `Network` is the machine; `Scenario` is data for it
(`tests/sim/scenarios.toml`), `simulate` runs one and `Report` says what came of it.

    report = simulate(Scenario(name="mine", nodes=50, loss=0.02), seed=7)
    assert report.missed_share == 0, report
"""

from p2pnode.testing.membership import Happening, MembersReport, MembersScenario, simulate_members
from p2pnode.testing.network import Network, Node, fake_verify
from p2pnode.testing.scenarios import Report, Scenario, load_scenarios, simulate

__all__ = [
    "Happening",
    "MembersReport",
    "MembersScenario",
    "Network",
    "Node",
    "Report",
    "Scenario",
    "fake_verify",
    "load_scenarios",
    "simulate",
    "simulate_members",
]
