"""Rules of the resources: what is asked of the sidecar, what comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pnode.api.routes import PAGE_MESSAGES
from p2pnode.ports import Health, Readiness
from p2pnode.wire.json_text import encode_message
from tests.api.fake import FakeSidecar, Publication, message, serving


async def test_documents_are_those_of_the_sidecar(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        for path, document in {
            "/health": {"status": "healthy"},
            "/api/v1/node": sidecar.node(),
            "/api/v1/peers": sidecar.peers(),
            "/api/v1/mesh": await sidecar.mesh(),
            "/api/v1/discovery": sidecar.discovery(),
            "/api/v1/doctor": await sidecar.doctor(),
            "/api/v1/topics": sidecar.topics(),
            "/api/v1/bootstrap-peers": sidecar.bootstrap_peers(),
        }.items():
            answer = await served.client.get(path)
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == "application/json"
            assert answer.json() == document


@pytest.mark.parametrize(("readiness", "status"), [("delivering", 200), ("degraded", 206), ("not-ready", 503)])
async def test_readiness_is_told_by_status_and_reasons(
    sidecar: FakeSidecar, tmp_path: Path, readiness: Readiness, status: int
) -> None:
    sidecar.readiness = Health(readiness, ("no peer answers: check --bootstrap",))
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get("/ready")
        assert answer.status_code == status
        assert answer.json() == {"status": readiness, "reasons": ["no peer answers: check --bootstrap"]}


async def test_the_root_lists_the_endpoints(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get("/")
        assert answer.headers["Content-Type"].startswith("text/plain")
        for path in (
            "/api/v1/bootstrap-peers",
            "/api/v1/peers/{peer}/ping",
            "/api/v1/mesh",
            "/api/v1/topology",
            "/api/v1/doctor",
            "/api/v1/discovery",
        ):
            assert path in answer.text


async def test_a_publication_reaches_the_sidecar_as_sent(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(
            "/api/v1/topics/hmmm.thread/messages",
            content=b'{"a": 1}',
            headers=[
                (b"Content-Type", b"application/json"),
                (b"Idempotency-Key", b"k-1"),
                (b"P2P-Council-ID", b"x"),
                (b"p2p-Name", "Zoë".encode()),
                (b"Other", b"stays out"),
            ],
        )
        assert (answer.status_code, answer.json()) == (202, {"id": "origin-7", "seqno": "7"})
    assert sidecar.publications == [
        Publication("hmmm.thread", b'{"a": 1}', "application/json", {"Council-ID": "x", "Name": "Zoë"}, "k-1")
    ]


async def test_without_headers_a_publication_is_bytes_without_key(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.post("/api/v1/topics/t/messages", content=b"")).status_code == 202
    assert sidecar.publications == [Publication("t", b"", "application/octet-stream", {}, None)]


async def test_a_repeated_publication_says_so(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.duplicate = True
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post("/api/v1/topics/t/messages", content=b"x")
        assert answer.json() == {"id": "origin-7", "seqno": "7", "duplicate": True}


@pytest.mark.parametrize(
    ("written", "topic"),
    [("hmmm.a%2Fb", "hmmm.a/b"), ("a%2Fmessages", "a/messages"), ("a%252Fb", "a%2Fb"), ("%C3%BC", "ü"), ("a+b", "a+b")],
)
async def test_a_topic_is_decoded_once(sidecar: FakeSidecar, tmp_path: Path, written: str, topic: str) -> None:
    async with serving(sidecar, tmp_path) as served:
        await served.client.post(f"/api/v1/topics/{written}/messages", content=b"x")
        await served.client.get(f"/api/v1/topics/{written}/messages")
        assert [publication.topic for publication in sidecar.publications] == [topic]
        assert [asked[0] for asked in sidecar.listed] == [topic]


async def test_an_encoded_slash_does_not_reach_another_resource(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get("/api/v1/topics/a%2Fmessages")
        assert answer.status_code == 404
        assert "%2F" in answer.json()["detail"]


async def test_messages_are_listed_after_one_up_to_a_limit(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.kept = [message(number) for number in range(5)]
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.get("/api/v1/topics/t/messages", params={"after": "origin-1", "limit": "2"})
        assert [document["id"] for document in answer.json()] == ["origin-2", "origin-3"]


@pytest.mark.parametrize(("limit", "count"), [(None, 100), (1, 1), (33, 33), (64, 64), (150, 150), (1000, 151)])
async def test_long_lists_are_whole_and_asked_for_in_pages(
    sidecar: FakeSidecar, tmp_path: Path, limit: int | None, count: int
) -> None:
    sidecar.kept = [message(number) for number in range(151)]
    async with serving(sidecar, tmp_path) as served:
        params = {} if limit is None else {"limit": str(limit)}
        answer = await served.client.get("/api/v1/topics/t/messages", params=params)
        assert answer.json() == sidecar.kept[:count]
        assert max(asked[2] for asked in sidecar.listed) <= PAGE_MESSAGES


async def test_head_has_the_status_and_no_body(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        for path in ("/health", "/api/v1/topics/t/messages", "/api/v1/topics/t/events"):
            answer = await served.client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")


def test_a_lone_surrogate_travels_as_json() -> None:
    document = message(1, {"text": "\ud800"})
    assert json.loads(encode_message(document)) == document


def test_one_unencodable_payload_does_not_hide_its_message() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for payload in (float("inf"), {"x": float("nan")}, nested):
        document = json.loads(encode_message(message(1, payload)))
        assert document == {**message(1), "unreadable": ["payload"]}
    while nested:  # unwound by hand: dropping it at once could exhaust the C stack
        nested = nested.pop()  # type: ignore[assignment]
