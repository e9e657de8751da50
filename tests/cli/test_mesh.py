"""`mesh`: the fleet's meshes as a table, as JSON, as graphs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.dot import NotDot, parse
from tests.cli.running import Run
from tests.local.fake import FakeSidecar, problem

A, B, C, D, STRANGER = (f"12D3KooW{letter * 6}" for letter in "abcdx")


def node(peer_id: str, name: str | None, links: list[str], **topics: list[str]) -> dict[str, Any]:
    topics = {topic.replace("_", "."): mesh for topic, mesh in topics.items()}
    return {"peer_id": peer_id, "name": name, "role": "chorus", "links": links, "topics": topics}


WHOLE = {
    "nodes": [
        node(A, "a", [B, C], councils_forming=[B, C], hmmm_x=[STRANGER, D]),
        node(B, "b", [A], councils_forming=[A], hmmm_x=[]),
        node(C, "c", [A, B], councils_forming=[B]),
    ],
    "missing": [],
}
PARTIAL = {**WHOLE, "missing": [{"peer_id": D, "name": "d"}]}


@pytest.fixture
def mesh(run: Run, sidecar: FakeSidecar) -> Run:
    sidecar.serves("/api/v1/mesh", WHOLE)
    return lambda *arguments: run("mesh", "--api", sidecar.api, *arguments)


def test_each_topic_has_its_nodes_with_degree_and_mesh(mesh: Run) -> None:
    outcome = mesh()
    assert outcome.code == 0
    first, second = outcome.out.split("\n\n")
    assert first.splitlines()[0] == "councils.forming: 3 nodes, 3 edges, 2 one-sided"
    assert [line.split() for line in first.splitlines()[1:]] == [
        ["NODE", "DEGREE", "MESH"],
        ["a", "2", "b", "c!"],
        ["b", "1", "a"],
        ["c", "1", "b!"],
    ]
    assert second.splitlines()[0] == "hmmm.x: 2 nodes, 2 edges, 1 with an empty mesh"
    assert [line.split() for line in second.splitlines()[2:]] == [
        ["a", "2", "…dddddd?", "…xxxxxx?"],
        ["b", "0", "empty", "mesh"],
    ]


def test_each_mark_is_explained_where_it_is_used(mesh: Run) -> None:
    assert [line[0] for line in mesh().err.splitlines()] == ["!", "?"]
    assert [line[0] for line in mesh("--topic", "councils.forming").err.splitlines()] == ["!"]


def test_one_topic_can_be_asked_for_in_every_form(mesh: Run) -> None:
    assert "councils" not in mesh("--topic", "hmmm.x").out
    document = json.loads(mesh("--topic", "hmmm.x", "-o", "json").out)
    assert [list(each["topics"]) for each in document["nodes"]] == [["hmmm.x"], ["hmmm.x"], []]
    assert [graph.name for graph in parse(mesh("--topic", "hmmm.x", "-o", "dot").out)] == ["hmmm.x"]


def test_a_topic_nobody_has_exits_1_and_names_the_others(mesh: Run) -> None:
    outcome = mesh("--topic", "nothing")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "error: no node that answered is subscribed to nothing\n  topics: councils.forming, hmmm.x\n"
    )


def test_json_is_the_sidecars_document(mesh: Run) -> None:
    assert json.loads(mesh("-o", "json").out) == WHOLE


def test_who_did_not_answer_is_named_and_the_exit_code_is_1(run: Run, sidecar: FakeSidecar) -> None:
    sidecar.serves("/api/v1/mesh", PARTIAL)
    for form in ("table", "json", "dot"):
        outcome = run("mesh", "-o", form, "--api", sidecar.api)
        assert outcome.code == 1
        assert outcome.err.endswith("1 live members did not answer: d\n")


def test_dot_has_a_graph_for_each_topic_with_one_edge_for_each_pair(mesh: Run) -> None:
    councils, hmmm = parse(mesh("-o", "dot").out)
    assert councils.name == councils.attributes["label"] == "councils.forming"
    assert {peer: each["label"] for peer, each in councils.nodes.items()} == {A: "a", B: "b", C: "c"}
    assert councils.edges == {(A, B): {}, (A, C): {"style": "dashed"}, (B, C): {"style": "dashed"}}
    assert hmmm.edges == {(A, STRANGER): {"style": "dotted"}, (A, D): {"style": "dotted"}}
    assert hmmm.nodes[STRANGER] == {"label": "…xxxxxx", "style": "dotted"}
    assert hmmm.nodes[B] == {"label": "b"}


@pytest.mark.parametrize("name", ['"', "\\", 'a\\"', '"]; x [label="', "\n}", "\\N\\G", "<b>", "\x1b[2J", "…"])
def test_names_are_escaped_in_dot(run: Run, sidecar: FakeSidecar, name: str) -> None:
    nodes = [node(A, name, [B], t=[B]), node(B, "b", [A], t=[A])]
    sidecar.serves("/api/v1/mesh", {"nodes": nodes, "missing": []})
    for form in ("dot", "table"):
        outcome = run("mesh", "-o", form, "--api", sidecar.api)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out
        if form == "dot":
            (graph,) = parse(outcome.out)
            assert set(graph.nodes) == {A, B}
            assert graph.edges == {(A, B): {}}


def test_the_parser_of_these_tests_is_no_pushover() -> None:
    for wrong in ('graph "a {}', "graph a { b -> c; }", 'graph a { "b"" }', "graph a { b; b; }", "graph a { b -- c }"):
        with pytest.raises(NotDot):
            parse(wrong)


def test_two_of_one_name_are_told_apart(run: Run, sidecar: FakeSidecar) -> None:
    nodes = [node(A, "a", [B], t=[B]), node(B, "a", [A], t=[A])]
    sidecar.serves("/api/v1/mesh", {"nodes": nodes, "missing": []})
    rows = run("mesh", "--api", sidecar.api).out.splitlines()[2:]
    assert [row.split() for row in rows] == [["a…aaaaaa", "1", "a…bbbbbb"], ["a…bbbbbb", "1", "a…aaaaaa"]]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"nodes": [], "missing": None},
        {"nodes": [{}], "missing": []},
        {"nodes": [{"peer_id": A, "topics": []}], "missing": []},
        {"nodes": [], "missing": [{}]},
    ],
)
def test_an_answer_of_another_shape_is_no_sidecars(run: Run, sidecar: FakeSidecar, document: object) -> None:
    sidecar.serves("/api/v1/mesh", document)
    assert run("mesh", "--api", sidecar.api).code == 3


def test_without_a_sidecar_it_exits_3_and_a_refusal_is_told(run: Run, sidecar: FakeSidecar) -> None:
    assert run("mesh").code == 3
    sidecar.on("GET", "/api/v1/mesh", problem(503, "the node is starting"))
    outcome = run("mesh", "--api", sidecar.api)
    assert outcome.code == 2
    assert "the node is starting" in outcome.err
