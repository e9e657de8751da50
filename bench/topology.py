"""Who dials whom: one random regular graph, the same for every system."""

from __future__ import annotations

from random import Random


class NoSuchGraph(ValueError):
    """No graph has so many nodes with so many links each."""


def random_regular(nodes: int, degree: int, rng: Random) -> list[tuple[int, int]]:
    """Links of a connected random graph in which every node has the same number of them.

    Returns:
        `(dialler, listener)`, each pair of nodes at most once, sorted; who dials is drawn as well.

    Raises:
        NoSuchGraph: `nodes * degree` is odd, or the degree leaves no connected graph.
    """
    if nodes < 2 or not 1 <= degree < nodes or (nodes * degree) % 2 or (degree == 1 and nodes > 2):
        raise NoSuchGraph(f"no connected graph has {nodes} nodes with {degree} links each")
    while True:
        links = _pair(nodes, degree, rng)
        if links is not None and _connected(nodes, links):
            return sorted(link if rng.random() < 0.5 else link[::-1] for link in sorted(links))


def _pair(nodes: int, degree: int, rng: Random) -> set[tuple[int, int]] | None:
    """Steger and Wormald (1999): pair free ends at random; None when the last ones fit nowhere."""
    links: set[tuple[int, int]] = set()
    ends = [node for node in range(nodes) for _ in range(degree)]
    while ends:
        rng.shuffle(ends)
        rest: list[int] = []
        for one, other in zip(ends[::2], ends[1::2], strict=True):
            link = (min(one, other), max(one, other))
            if one == other or link in links:
                rest += link
            else:
                links.add(link)
        if len(rest) == len(ends):
            return None
        ends = rest
    return links


def _connected(nodes: int, links: set[tuple[int, int]]) -> bool:
    neighbours: dict[int, set[int]] = {node: set() for node in range(nodes)}
    for one, other in links:
        neighbours[one].add(other)
        neighbours[other].add(one)
    reached, edge = {0}, [0]
    while edge:
        new = neighbours[edge.pop()] - reached
        reached |= new
        edge += new
    return len(reached) == nodes
