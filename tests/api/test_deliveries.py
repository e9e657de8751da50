"""Rules of the resources of delivery: what is asked reaches the sidecar, what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.errors import NotFound, StorageFull
from p2pnode.ports import Followed
from tests.api.fake import FakeSidecar, message, serving
from tests.api.test_events import EVENTS, following

SUBSCRIPTIONS = "/api/v1/subscriptions"
DELIVERIES = "/api/v1/deliveries"


async def test_a_named_stream_is_a_durable_one(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        async with following(served, f"{EVENTS}?subscription=a.b&from=start") as events:
            sidecar.push(Followed(message(1)), Followed(replaced=True))
            assert (await events.next())["id"] == "origin-1"
            assert (await events.next())["event"] == "replaced"
        assert sidecar.subscribed == [("t", "a.b", "start")]


async def test_subscriptions_and_what_waits_are_listed(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.waiting = [{"name": "a", "pending": 3}]
    async with serving(sidecar, tmp_path) as served:
        for path in (SUBSCRIPTIONS, DELIVERIES):
            answer = await served.client.get(path)
            assert (answer.status_code, answer.json()) == (200, sidecar.waiting)


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        (f"{SUBSCRIPTIONS}/a/ack", {"id": "x-1"}, ("ack", "a", "x-1")),
        (f"{SUBSCRIPTIONS}/a%20b/ack", {"id": "x-1"}, ("ack", "a b", "x-1")),
        (f"{SUBSCRIPTIONS}/a/nack", {"id": "x-1"}, ("nack", "a", "x-1", "")),
        (f"{SUBSCRIPTIONS}/a/nack", {"id": "x-1", "reason": "why"}, ("nack", "a", "x-1", "why")),
    ],
)
async def test_messages_are_acknowledged_and_given_up_by_id(
    sidecar: FakeSidecar, tmp_path: Path, path: str, body: dict[str, str], asked: tuple[str, ...]
) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(path, json=body)
        assert (answer.status_code, answer.json(), sidecar.asked) == (200, {"pending": 4}, [asked])


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"id": "x-1"}, (None, "x-1")),
        ({"all": True}, (None, None)),
        ({"subscription": "a", "id": "x-1"}, ("a", "x-1")),
        ({"subscription": "a", "all": True}, ("a", None)),
    ],
)
async def test_failed_deliveries_are_retried_and_dropped(
    sidecar: FakeSidecar, tmp_path: Path, body: dict[str, object], asked: tuple[object, ...]
) -> None:
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.post(f"{DELIVERIES}/retry", json=body)).json() == {"retried": 2}
        assert (await served.client.post(f"{DELIVERIES}/drop", json=body)).json() == {"dropped": 3}
        assert sidecar.asked == [("retry", *asked), ("drop", *asked)]


async def test_failed_deliveries_are_listed_of_one_subscription_or_of_all(sidecar: FakeSidecar, tmp_path: Path) -> None:
    sidecar.letters = [{"id": "x-1"}]
    async with serving(sidecar, tmp_path) as served:
        assert (await served.client.get(f"{DELIVERIES}/failed")).json() == sidecar.letters
        await served.client.get(f"{DELIVERIES}/failed?subscription=a&limit=5")
        assert sidecar.asked == [("failed", None, 1000), ("failed", "a", 5)]
        wrong = await served.client.get(f"{DELIVERIES}/failed?limit=0")
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "limit")


async def test_a_subscription_is_deleted(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.delete(f"{SUBSCRIPTIONS}/a")
        assert (answer.status_code, answer.content, sidecar.asked) == (204, b"", [("unsubscribe", "a")])
        assert (await served.client.get(f"{SUBSCRIPTIONS}/a")).status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (f"{SUBSCRIPTIONS}/a/ack", "", "body"),
        (f"{SUBSCRIPTIONS}/a/ack", "[1]", "body"),
        (f"{SUBSCRIPTIONS}/a/ack", "{}", "id"),
        (f"{SUBSCRIPTIONS}/a/ack", '{"id": 7}', "id"),
        (f"{SUBSCRIPTIONS}/a/ack", '{"id": ""}', "id"),
        (f"{SUBSCRIPTIONS}/a/ack", '{"id": "x", "ids": []}', "ids"),
        (f"{SUBSCRIPTIONS}/a/ack", "[" * 100_000, "body"),
        (f"{SUBSCRIPTIONS}/%ff/ack", '{"id": "x"}', "name"),
        (f"{SUBSCRIPTIONS}/a/nack", '{"id": "x", "reason": 7}', "reason"),
        (f"{DELIVERIES}/retry", "{}", "id"),
        (f"{DELIVERIES}/retry", '{"id": "x", "all": true}', "id"),
        (f"{DELIVERIES}/retry", '{"all": false}', "all"),
        (f"{DELIVERIES}/drop", '{"all": true, "subscription": null}', "subscription"),
    ],
)
async def test_a_wrong_body_is_told_with_what_would_be_right(
    sidecar: FakeSidecar, tmp_path: Path, path: str, body: str, field: str
) -> None:
    async with serving(sidecar, tmp_path) as served:
        answer = await served.client.post(path, content=body)
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["errors"]] == [field]
        assert sidecar.asked == []


async def test_what_is_not_there_is_404_and_a_full_disk_507(sidecar: FakeSidecar, tmp_path: Path) -> None:
    async with serving(sidecar, tmp_path) as served:
        sidecar.error = NotFound("there is no subscription 'a'")
        assert (await served.client.post(f"{SUBSCRIPTIONS}/a/ack", json={"id": "x-1"})).status_code == 404
        sidecar.error = StorageFull("no space left", hint="make room")
        answer = await served.client.get(f"{EVENTS}?subscription=a")
        assert (answer.status_code, answer.json()["reason"]) == (507, "storage-full")
