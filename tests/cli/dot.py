"""Reads Graphviz: the part of its grammar that undirected graphs need (graphviz.org/doc/info/lang.html)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([A-Za-z_][A-Za-z0-9_]*|[0-9.]+)|(--|[{}\[\];=,]))')


@dataclass
class Graph:
    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    edges: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)


class NotDot(Exception):
    pass


def parse(text: str) -> list[Graph]:
    """Every graph in `text`.

    Raises:
        NotDot: it does not follow the grammar, or names an edge or node twice.
    """
    tokens = _tokens(text)
    graphs = []
    while tokens:
        _take(tokens, "graph")
        graph = Graph(_id(tokens))
        _take(tokens, "{")
        while tokens[0] != "}":
            _statement(tokens, graph)
            _take(tokens, ";")
        _take(tokens, "}")
        graphs.append(graph)
    return graphs


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise NotDot(f"at {text[at : at + 20]!r}")
        tokens.append(match[match.lastindex or 0])
        at = match.end()
    return tokens


def _statement(tokens: list[str], graph: Graph) -> None:
    one = _id(tokens)
    if tokens[0] == "=":
        tokens.pop(0)
        graph.attributes[one] = _id(tokens)
        return
    if tokens[0] == "--":
        tokens.pop(0)
        edge = (one, _id(tokens))
        if edge in graph.edges or edge[::-1] in graph.edges:
            raise NotDot(f"{edge} twice")
        graph.edges[edge] = _attributes(tokens)
        return
    if one in graph.nodes:
        raise NotDot(f"{one} twice")
    graph.nodes[one] = _attributes(tokens)


def _attributes(tokens: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if tokens[0] != "[":
        return found
    tokens.pop(0)
    while tokens[0] != "]":
        name = _id(tokens)
        _take(tokens, "=")
        found[name] = _id(tokens)
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    return found


def _id(tokens: list[str]) -> str:
    token = tokens.pop(0)
    if token.startswith('"'):
        return token[1:-1].replace('\\"', '"')
    if not re.fullmatch(r"[A-Za-z_0-9.]+", token):
        raise NotDot(f"{token!r} is no name")
    return token


def _take(tokens: list[str], wanted: str) -> None:
    if not tokens or tokens.pop(0) != wanted:
        raise NotDot(f"no {wanted!r}")
