"""A private network of real sidecars: members meet, however the key was given; a stranger is told why it is alone."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.harness import Node, command, environment, running_node, wait_until

TOPIC = "hmmm.private"


def alive(node: Node) -> set[str]:
    return {str(peer["name"]) for peer in node.get("/api/v1/peers") if peer["state"] == "alive"}


def new_key(tmp_path: Path) -> str:
    made = command("keygen", "--network", env=environment(tmp_path / "run"))
    assert made.returncode == 0
    return made.stdout.decode()


def test_who_has_the_key_is_in_and_who_has_another_or_none_is_told_what_to_check(tmp_path: Path) -> None:
    text = new_key(tmp_path)
    key_file = tmp_path / "swarm.key"
    key_file.write_text(text)
    by_variable = environment(tmp_path / "run", P2PNODE_NETWORK_KEY=text.split()[2], P2PNODE_GOSSIP_TOPICS=TOPIC)
    by_file = environment(tmp_path / "run", P2PNODE_NETWORK_KEY_FILE=str(key_file), P2PNODE_GOSSIP_TOPICS=TOPIC)
    another = environment(tmp_path / "run", P2PNODE_NETWORK_KEY=new_key(tmp_path))
    none = environment(tmp_path / "run")
    with running_node(tmp_path, "first", env=by_variable) as first:
        join = ("--bootstrap", first.bootstrap)
        with (
            running_node(tmp_path, "second", *join, env=by_file) as second,
            running_node(tmp_path, "another", *join, env=another) as other,
            running_node(tmp_path, "none", *join, env=none) as keyless,
        ):
            for member in (first, second):
                wait_until(f"{member.name} sees both", lambda member=member: alive(member) == {"first", "second"})  # type: ignore[misc]
            wait_until("it arrives", lambda: first.publish_accepted(TOPIC, b"said") in second.ids(TOPIC))
            for stranger, what in ((other, "it has another network key"), (keyless, "it has a network key")):
                is_told_why_it_is_alone(stranger, first, what)
                assert alive(stranger) == {stranger.name}
            assert alive(first) == alive(second) == {"first", "second"}


def is_told_why_it_is_alone(stranger: Node, member: Node, what: str) -> None:
    """By `p2pnode status`, and in the log once, however often it tries."""
    env = environment(Path(stranger.api.removeprefix("unix:")).parent / "run", P2PNODE_API=stranger.api)

    def told() -> bool:
        status = command("status", "-o", "json", env=env)
        assert status.returncode == 2
        reasons = json.loads(status.stdout)["reasons"]
        return any(what in reason and "network.key" in reason and member.bootstrap in reason for reason in reasons)

    wait_until(f"{stranger.name} is told", told)
    wait_until("it tried again", lambda: member.metric('p2pnode_connections_broken_total{reason="handshake"') > 4)
    assert stranger.log is not None
    warnings = [line for line in stranger.log.read_text().splitlines() if "network.key" in line]
    assert len(warnings) == 1
    assert what in warnings[0]
