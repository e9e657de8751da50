"""`mesh`: who is in whose mesh, topic by topic, over the whole fleet."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, object_of, rows_of, sidecar_options
from p2pnode.errors import Degraded, NoSidecar

ANSWER_SECONDS: Final = 10.0
"""The sidecar asks its fleet for three seconds at most."""

ONE_SIDED: Final = "!"
UNTOLD: Final = "?"
SHORT_ID: Final = 6
"""The last characters of a peer id, which tell apart whom the name does not."""

_LEGEND: Final = {
    ONE_SIDED: "one-sided: the other does not have this node in its mesh (for about a second that is normal)",
    UNTOLD: "did not answer, or is no p2pnode: its side is not known",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """What the fleet told.

    Args:
        names: what each peer is called here, unique.
        nodes: who answered, in order, with its mesh by topic.
        missing: who did not, as called here.
        topics: that any node told of, in order.
    """

    names: Mapping[str, str]
    nodes: Sequence[tuple[str, Mapping[str, Sequence[str]]]]
    missing: Mapping[str, str]
    topics: Sequence[str]

    def edges(self, topic: str) -> set[tuple[str, str]]:
        """`(a, b)`: a has b in its mesh."""
        return {(peer, other) for peer, meshes in self.nodes for other in meshes.get(topic, ())}

    def one_sided(self, topic: str) -> set[tuple[str, str]]:
        """Edges whose other end answered and does not have it."""
        edges = self.edges(topic)
        answered = {peer for peer, _ in self.nodes}
        return {(peer, other) for peer, other in edges if other in answered and (other, peer) not in edges}


@click.command()
@click.option("--topic", multiple=True, help="Only this topic; may be given several times.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "dot"]), default="table")
@sidecar_options
def mesh(topic: Sequence[str], form: str, api: str | None, api_token_file: str | None) -> int:
    """Who is in whose mesh, asked of every node of the fleet.

    Exit code 1: a live member did not answer, or nobody is subscribed to the topic. `-o dot` is for Graphviz, one
    graph for each topic.
    """
    document = object_of(
        connect(api, api_token_file).get_json("/api/v1/mesh", timeout_seconds=ANSWER_SECONDS), "the mesh"
    )
    picture = read(document)
    topics = [each for each in picture.topics if not topic or each in topic]
    if form == "json":
        output.print_json(_narrowed(document, topics) if topic else document)
    elif form == "dot":
        sys.stdout.write("\n".join(graph(picture, each) for each in topics))
    else:
        _print(picture, topics)
    sys.stdout.flush()
    if picture.missing:
        output.note(f"{len(picture.missing)} live members did not answer: {', '.join(picture.missing.values())}")
    if unknown := [each for each in topic if each not in picture.topics]:
        known = ", ".join(picture.topics) or "none at all"
        raise Degraded(f"no node that answered is subscribed to {', '.join(unknown)}", hint=f"topics: {known}")
    return 1 if picture.missing else 0


def read(document: Mapping[str, Any]) -> Picture:
    """Raises NoSidecar when it is no mesh document."""
    nodes = rows_of(document.get("nodes"), "nodes")
    missing = rows_of(document.get("missing"), "missing nodes")
    try:
        meshes = [(str(node["peer_id"]), _meshes(node["topics"])) for node in nodes]
        called = {str(each["peer_id"]): each.get("name") for each in (*nodes, *missing)}
    except (KeyError, TypeError, AttributeError) as error:
        raise NoSidecar("the sidecar's answer about the mesh is not understood", hint="same version?") from error
    uses = Counter(called.values())
    everybody = [*called, *(other for _, topics in meshes for mesh in topics.values() for other in mesh)]
    names = {
        peer: str(name) if (name := called.get(peer)) and uses[name] == 1 else f"{name or ''}…{peer[-SHORT_ID:]}"
        for peer in dict.fromkeys(everybody)
    }
    return Picture(
        names,
        meshes,
        {str(each["peer_id"]): names[str(each["peer_id"])] for each in missing},
        sorted({topic for _, topics in meshes for topic in topics}),
    )


def _meshes(topics: Mapping[str, Any]) -> dict[str, list[str]]:
    return {str(topic): [str(peer) for peer in mesh] for topic, mesh in topics.items()}


def _narrowed(document: Mapping[str, Any], topics: Sequence[str]) -> dict[str, Any]:
    nodes = [
        {**node, "topics": {topic: mesh for topic, mesh in node["topics"].items() if topic in topics}}
        for node in document["nodes"]
    ]
    return {**document, "nodes": nodes}


def _print(picture: Picture, topics: Sequence[str]) -> None:
    """A block for each topic: a line of sums, then a row for each node that is subscribed."""
    marks: set[str] = set()
    for number, topic in enumerate(topics):
        answered = {peer for peer, _ in picture.nodes}
        one_sided = picture.one_sided(topic)
        rows = []
        for peer, meshes in picture.nodes:
            if topic not in meshes:
                continue
            told = []
            for other in sorted(meshes[topic], key=lambda each: picture.names[each]):
                mark = ONE_SIDED if (peer, other) in one_sided else "" if other in answered else UNTOLD
                marks.add(mark)
                told.append(output.clean(picture.names[other]) + mark)
            rows.append([output.clean(picture.names[peer]), str(len(told)), " ".join(told) or "empty mesh"])
        edges = picture.edges(topic)
        pairs = len({frozenset(edge) for edge in edges})
        empty = sum(not meshes[topic] for _, meshes in picture.nodes if topic in meshes)
        sums = [
            f"{len(rows)} nodes",
            f"{pairs} edges",
            *([f"{len(one_sided)} one-sided"] if one_sided else []),
            *([f"{empty} with an empty mesh"] if empty else []),
        ]
        sys.stdout.write(f"{'' if number == 0 else chr(10)}{output.paint(topic, 'bold')}: {', '.join(sums)}\n")
        output.print_table(["NODE", "DEGREE", "MESH"], rows)
    for mark, meaning in _LEGEND.items():
        if mark in marks:
            output.note(f"{mark} {meaning}")


def graph(picture: Picture, topic: str) -> str:
    """One topic as a Graphviz graph: solid edges are mutual, dashed ones one-sided.

    Dotted: nodes that are not subscribed or did not answer, and edges to who did not answer.
    """
    edges = picture.edges(topic)
    subscribed = [peer for peer, meshes in picture.nodes if topic in meshes]
    answered = {peer for peer, _ in picture.nodes}
    others = sorted({other for _, other in edges} - set(subscribed))
    lines = [f"graph {_quoted(topic)} {{", f"  label={_quoted(topic)};"]
    for peer in (*subscribed, *others):
        style = ", style=dotted" if peer in others else ""
        lines.append(f"  {_quoted(peer)} [label={_quoted(picture.names[peer])}{style}];")
    for one, other in sorted({(min(edge), max(edge)) for edge in edges}):
        style = "dashed" if {one, other} <= answered else "dotted"
        style = "" if {(one, other), (other, one)} <= edges else f" [style={style}]"
        lines.append(f"  {_quoted(one)} -- {_quoted(other)}{style};")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    """A quoted DOT string in which nothing is an escape of Graphviz's (`\\N`, `\\G`) or of a terminal's."""
    return '"' + output.clean(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
