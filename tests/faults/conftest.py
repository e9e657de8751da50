"""The duel that all attacks share, and hostile peers that dial without delay."""

from __future__ import annotations

from collections.abc import Iterator

import libp2p.network.swarm
import pytest

from tests.e2e.harness import environment, running_node
from tests.faults.duel import BULK, OPPORTUNITIES, TOPIC, Duel


@pytest.fixture(scope="package")
def duel(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Duel]:
    """One for all attacks, so that what they leave behind adds up."""
    directory = tmp_path_factory.mktemp("hostile")
    env = environment(
        directory / "run",
        P2PNODE_GOSSIP_TOPICS=f"{OPPORTUNITIES},{TOPIC},{BULK}",
        P2PNODE_GOSSIP_PUBLISH_PER_SECOND="10000",
        P2PNODE_GOSSIP_PUBLISH_BURST="10000",
    )
    with (
        running_node(directory, "victim", env=env) as victim,
        running_node(directory, "neighbour", "--bootstrap", victim.bootstrap, env=env) as neighbour,
    ):
        duel = Duel(victim, neighbour, directory, env)
        duel.assert_unharmed()
        yield duel
        first, last, most = duel.rss_mib[0], duel.rss_mib[-1], max(duel.rss_mib)
        with pytestconfig.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
            print(f"\nvictim's RSS: {first:.0f} MiB, after all attacks {last:.0f}, at most {most:.0f}")


@pytest.fixture(autouse=True)
def dials_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library holds each dial of a hostile peer for 250 ms in the hope of a second address."""
    monkeypatch.setattr(libp2p.network.swarm, "_HAPPY_EYEBALLS_DELAY", 0.0)
