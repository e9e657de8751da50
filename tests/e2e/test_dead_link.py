"""A link that dies without a word, between nodes in two networks."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.cable import LEFT, RIGHT, needs_cables, open_cable
from tests.e2e.harness import Node, environment, running_node, wait_until
from tests.stacks import STACKS, Stack

NOTICED_SECONDS = 60.0
"""The figure that counts is printed; this only ends a test that waits in vain."""


def is_linked_to(node: Node, peers: set[str]) -> bool:
    return any(peer["peer_id"] in peers and peer["direction"] for peer in node.get("/api/v1/peers"))


@needs_cables
def test_a_dead_link_is_noticed_on_both_sides_and_both_stacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_cable() as cable, ExitStack() as running:

        def start(side: str, stack: Stack, *flags: str) -> Node:
            within, addr = (cable.left, LEFT) if side == "left" else (cable.right, RIGHT)
            flags = (*flags, "--listen", f"/ip4/{addr}/tcp/0")
            env = environment(tmp_path / "run", P2PNODE_TRANSPORT_STACK=stack)
            return running.enter_context(running_node(tmp_path, f"{side}-{stack}", *flags, env=env, within=within))

        far: dict[str, set[str]] = {}
        nodes: list[Node] = []
        for stack in STACKS:
            left = start("left", stack)
            right = start("right", stack, "--bootstrap", left.bootstrap)
            for node, other in ((left, right), (right, left)):
                far[node.name] = {other.get("/api/v1/node")["peer_id"]}
                nodes.append(node)
                wait_until(f"{node.name} is linked to {other.name}", partial(is_linked_to, node, far[node.name]))
        noticed: dict[str, float] = {}
        cable.cut()
        cut = time.monotonic()

        def all_noticed() -> bool:
            for node in nodes:
                if not is_linked_to(node, far[node.name]):
                    noticed.setdefault(node.name, time.monotonic() - cut)
            return len(noticed) == len(nodes)

        wait_until("all have noticed", all_noticed, NOTICED_SECONDS)
    with capsys.disabled():
        print(f"\ndead link noticed after: {', '.join(f'{name} {after:.1f} s' for name, after in noticed.items())}")
