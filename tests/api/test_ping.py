"""Rules of `/peers/{peer}/ping`: who is meant, and what is said when nobody is or nobody answers."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from p2pnode.api.naming import SHOWN_CANDIDATES, find_peer
from p2pnode.errors import InvalidRequest, NotFound, Unavailable
from p2pnode.ports import JsonObject
from tests.api.fake import FakeSidecar, serving


def known(peer_id: str, name: str | None = None, state: str = "alive", **members: object) -> JsonObject:
    return {"peer_id": peer_id, "name": name, "state": state, **members}


MEMBERS = [
    known("12D3KooWself", "me", self=True),
    known("12D3KooWaaa1", "one"),
    known("12D3KooWaaa2", "two"),
    known("12D3KooWbbb1", "two"),
    known("12D3KooWccc1", "three", "dead"),
    known("12D3KooWccc2", "three"),
    known("12D3KooWddd1", "four", "left"),
    known("12D3KooWddd2", "four", "dead"),
    known("12D3KooWeee1", "12D3KooWaaa1"),
    known("12D3KooWfff1"),
    known("12D3KooWfff12", "ü/b"),
]


@pytest.fixture
def fleet(sidecar: FakeSidecar) -> FakeSidecar:
    sidecar.members = MEMBERS
    return sidecar


@pytest.mark.parametrize(
    ("text", "peer_id"),
    [
        ("12D3KooWaaa2", "12D3KooWaaa2"),
        ("one", "12D3KooWaaa1"),
        ("12D3KooWaaa1", "12D3KooWaaa1"),
        ("12D3KooWbb", "12D3KooWbbb1"),
        ("three", "12D3KooWccc2"),
        ("12D3KooWddd1", "12D3KooWddd1"),
        ("12D3KooWfff1", "12D3KooWfff1"),
        ("ü/b", "12D3KooWfff12"),
    ],
)
async def test_a_peer_is_meant_by_id_name_or_unique_beginning(
    fleet: FakeSidecar, tmp_path: Path, text: str, peer_id: str
) -> None:
    async with serving(fleet, tmp_path) as served:
        answer = await served.client.post(f"/api/v1/peers/{quote(text, safe='')}/ping")
        assert (answer.status_code, answer.json()["peer_id"]) == (200, peer_id)
    assert fleet.pinged == [peer_id]


@pytest.mark.parametrize("text", ["nobody", "12D3KooWx", "on", "One", " one"])
def test_nobody_is_an_error_with_candidates(text: str) -> None:
    with pytest.raises(NotFound) as caught:
        find_peer(text, MEMBERS)
    assert repr(text) in caught.value.detail
    candidates = caught.value.hint.removeprefix("known here: ").partition(";")[0].split(", ")
    assert set(candidates) & {"one", "12D3KooWfff1"}
    assert "me" not in candidates


def test_the_nearest_names_are_the_candidates() -> None:
    fleet = [known(f"12D3KooW{number}", f"chorus-{number}") for number in range(30)] + [known("12D3x", "bridge-1")]
    with pytest.raises(NotFound) as caught:
        find_peer("brigde-1", fleet)
    assert caught.value.hint.startswith("known here: bridge-1, …; ")
    with pytest.raises(NotFound) as caught:
        find_peer("a", [known("12D3KooWself", "me", self=True)])
    assert "p2pnode status" in caught.value.hint


@pytest.mark.parametrize(("text", "count"), [("two", 2), ("four", 2), ("12D3KooWaaa", 2), ("12D3KooW", len(MEMBERS))])
def test_several_are_an_error_that_lists_them(text: str, count: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        find_peer(text, MEMBERS)
    assert f"{count} peers" in caught.value.detail
    assert len(caught.value.faults) == min(count, SHOWN_CANDIDATES)
    assert all("12D3KooW" in fault.problem for fault in caught.value.faults)
    assert (f"and {count - SHOWN_CANDIDATES} more" in caught.value.hint) == (count > SHOWN_CANDIDATES)


async def problem(sidecar: FakeSidecar, path: Path, text: str) -> httpx.Response:
    async with serving(sidecar, path) as served:
        answer = await served.client.post(f"/api/v1/peers/{text}/ping")
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer


async def test_unknown_is_404_and_ambiguous_and_self_are_422(fleet: FakeSidecar, tmp_path: Path) -> None:
    unknown = await problem(fleet, tmp_path, "nobody")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:p2pnode:problem:not-found")
    for text in ("two", "me", "%ff"):
        answer = await problem(fleet, tmp_path, text)
        assert answer.status_code == 422
        assert {error["field"] for error in answer.json()["errors"]} == {"peer"}
    assert fleet.pinged == []


async def test_who_does_not_answer_is_503_with_the_reason(fleet: FakeSidecar, tmp_path: Path) -> None:
    fleet.unanswered = Unavailable("no echo within 10 s", reason="ping")
    answer = await problem(fleet, tmp_path, "one")
    assert (answer.status_code, answer.json()["reason"]) == (503, "ping")


async def test_a_ping_changes_something_so_it_is_no_get(fleet: FakeSidecar, tmp_path: Path) -> None:
    async with serving(fleet, tmp_path) as served:
        answer = await served.client.get("/api/v1/peers/one/ping")
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert fleet.pinged == []
