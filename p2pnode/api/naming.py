"""Which peer somebody means: by peer id, by the beginning of one, or by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from p2pnode.errors import Fault, InvalidRequest, NotFound
from p2pnode.ports import JsonObject

SHOWN_CANDIDATES = 8
COMPARED_NAMES = 1000
"""With a wrong one, to find the nearest: some 20 ms."""


def find_peer(text: str, members: Sequence[JsonObject]) -> JsonObject:
    """The one of `members` (member documents) that `text` names, this node itself excepted.

    A whole peer id wins over a name, a name over the beginning of a peer id. Of several with one name, the only one
    that is not gone is meant.

    Raises:
        NotFound: nobody is named so.
        InvalidRequest: several are, all listed; or it is this node itself.
    """
    by_id = [member for member in members if member["peer_id"] == text]
    by_name = [member for member in members if text and member.get("name") == text]
    present = [member for member in by_name if member.get("state") not in ("dead", "left")]
    by_start = [member for member in members if text and member["peer_id"].startswith(text)]
    meant = by_id or (present if len(present) == 1 else by_name) or by_start
    if not meant:
        raise NotFound(f"nobody known here is called {text!r}, and no peer id begins so", hint=_hint(text, members))
    if len(meant) > 1:
        faults = [Fault("peer", _described(member)) for member in meant[:SHOWN_CANDIDATES]]
        raise InvalidRequest(
            f"{text!r} names {len(meant)} peers; which one?",
            faults,
            hint=f"{_rest(len(meant))}give the peer id, or more of it",
        )
    if meant[0].get("self"):
        raise InvalidRequest(
            "a node is no peer of its own", [Fault("peer", f"{text!r} is this sidecar itself: name another")]
        )
    return meant[0]


def _hint(text: str, members: Iterable[JsonObject]) -> str:
    names = sorted({member.get("name") or member["peer_id"] for member in members if not member.get("self")})
    if not names:
        return "no peer is known here at all; `p2pnode status` says more"
    near = get_close_matches(text, names[:COMPARED_NAMES], SHOWN_CANDIDATES) or names[:SHOWN_CANDIDATES]
    return f"known here: {', '.join(near)}{'' if len(near) == len(names) else ', …; `p2pnode peers` lists all'}"


def _described(member: JsonObject) -> str:
    words = (member.get("name"), member["peer_id"], member.get("state"))
    return " ".join(str(word) for word in words if word)


def _rest(number: int) -> str:
    return f"and {number - SHOWN_CANDIDATES} more; " if number > SHOWN_CANDIDATES else ""
