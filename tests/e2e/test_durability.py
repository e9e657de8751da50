"""What was answered with 202 arrives everywhere, whatever is killed, cut off, full or late.

Each test prints what it took. Deadlines only end a test that waits in vain.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from p2pnode.client import Client
from p2pnode.errors import NoSidecar, P2PNodeError
from tests.e2e.agents import Webhook, open_webhook
from tests.e2e.cable import LEFT, RIGHT, Cable, needs_cables, open_cable
from tests.e2e.harness import Node, environment, have_all, running_node, start_node, stop, wait_until

TOPIC = "hmmm.durable"
ROUNDS = 100
DEADLINE_SECONDS = 180.0
QUIET_SECONDS = 20.0
SETTINGS = {
    "P2PNODE_GOSSIP_TOPICS": TOPIC,
    "P2PNODE_GOSSIP_PUBLISH_PER_SECOND": "10000",
    "P2PNODE_GOSSIP_PUBLISH_BURST": "10000",
}

Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}; load average {os.getloadavg()[0]:.1f}")

    return say


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "run", **SETTINGS)


def names_alive(node: Node) -> set[str]:
    return {peer["name"] for peer in node.get("/api/v1/peers") if peer["state"] == "alive"} if node.answers() else set()


def all_see_all(nodes: Sequence[Node]) -> None:
    names = {node.name for node in nodes}
    for node in nodes:
        wait_until(f"{node.name} sees all", lambda node=node: names <= names_alive(node))  # type: ignore[misc]


@contextmanager
def fleet(directory: Path, env: Mapping[str, str], *names: str) -> Iterator[list[Node]]:
    """Nodes on loopback that see each other; the first is everybody's bootstrap."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_node(directory, names[0], env=env))]
        for name in names[1:]:
            flags = ("--bootstrap", nodes[0].bootstrap)
            nodes.append(stack.enter_context(running_node(directory, name, *flags, env=env)))
        all_see_all(nodes)
        yield nodes


def publish_many(node: Node, count: int, size: int = 1024, callers: int = 8) -> set[str]:
    """Ids of messages of `size` bytes, published by several callers at once; all were acknowledged."""
    ids: set[str] = set()
    failed: list[P2PNodeError] = []

    def call(caller: int) -> None:
        with Client(node.api, timeout=DEADLINE_SECONDS) as client:
            for number in range(caller, count, callers):
                try:
                    ids.add(client.publish(TOPIC, f"{number} ".ljust(size, "x")).id)
                except P2PNodeError as error:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    assert len(ids) == count
    return ids


def held_by(node: Node) -> Counter[str]:
    """How often each message id is in what a node lists."""
    return Counter(document["id"] for document in node.messages(TOPIC))


@pytest.mark.soak
def test_a_publisher_killed_right_after_202_loses_none_of_a_hundred(
    tmp_path: Path, env: dict[str, str], report: Report
) -> None:
    with fleet(tmp_path, env, "one", "two") as others:
        flags = ("--bootstrap", others[0].bootstrap, "--bootstrap", others[1].bootstrap)
        ids = set()
        began = time.monotonic()
        for number in range(ROUNDS):
            publisher = start_node(tmp_path, "publisher", *flags, env=env)
            try:
                wait_until("it answers", publisher.answers)
                ids.add(publisher.publish_accepted(TOPIC, b"%d" % number))
            finally:
                stop(publisher, signal.SIGKILL)
        killed = time.monotonic()
        publisher = start_node(tmp_path, "publisher", *flags, env=env)
        try:
            wait_until("it answers", publisher.answers)
            assert len(ids) == ROUNDS
            have_all([publisher, *others], TOPIC, ids, DEADLINE_SECONDS)
            for node in (publisher, *others):
                assert held_by(node) == dict.fromkeys(ids, 1)
        finally:
            stop(publisher)
        took = time.monotonic() - killed
        report(f"{ROUNDS} kills right after 202 in {killed - began:.0f} s; complete {took:.1f} s after the last")


@pytest.mark.parametrize("rounds", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_a_publisher_killed_before_202_and_asked_again_makes_one_message(
    tmp_path: Path, env: dict[str, str], report: Report, rounds: int
) -> None:
    """Killed while requests are in flight, at another moment each round: some were stored, and nobody heard of it."""
    callers = 8
    with fleet(tmp_path, env, "one", "two") as others:
        answers: dict[str, set[str]] = {}
        lost_answers = found_again = 0
        for number in range(rounds):
            publisher = start_node(tmp_path, "publisher", "--bootstrap", others[0].bootstrap, env=env)
            try:
                wait_until("it answers", publisher.answers)
                early, unanswered = publish_until_killed(publisher, number, callers, after=0.02 + 0.2 * number / rounds)
            finally:
                stop(publisher, signal.SIGKILL)
            publisher = start_node(tmp_path, "publisher", "--bootstrap", others[0].bootstrap, env=env)
            try:
                wait_until("it answers", publisher.answers)
                with Client(publisher.api) as client:
                    for key in (*early, *unanswered):
                        again = client.publish(TOPIC, key, idempotency_key=key)
                        answers.setdefault(key, set()).add(again.id)
                        if key in early:
                            assert (again.id, again.duplicate) == (early[key], True)
                        else:
                            found_again += again.duplicate
                have_all([publisher, *others], TOPIC, {each for ids in answers.values() for each in ids})
                if number == rounds - 1:
                    ids = {each for found in answers.values() for each in found}
                    assert len(ids) == len(answers)
                    for node in (publisher, *others):
                        assert held_by(node) == dict.fromkeys(ids, 1)
            finally:
                stop(publisher)
            lost_answers += len(unanswered)
        assert lost_answers
        report(
            f"{rounds} kills, {len(answers)} keys: {lost_answers} without an answer, "
            f"{found_again} of them stored before the kill"
        )


def publish_until_killed(node: Node, number: int, callers: int, after: float) -> tuple[dict[str, str], list[str]]:
    """Ids by key of what was answered, and the keys of what was asked for and not answered."""
    answered: dict[str, str] = {}
    unanswered: list[str] = []

    def call(caller: int) -> None:
        for turn in range(10_000):
            key = f"{number}-{caller}-{turn}"
            try:
                response = node.publish(TOPIC, key.encode(), {"Idempotency-Key": key, "Content-Type": TEXT})
            except NoSidecar:
                unanswered.append(key)
                return
            assert response.status == 202, response
            answered[key] = response.json()["id"]

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(after)  # When the blow falls is the point of the test; nothing is waited for.
    assert node.process is not None
    node.process.kill()
    for thread in threads:
        thread.join()
    return answered, unanswered


TEXT = "text/plain; charset=utf-8"


def test_a_node_that_was_down_for_5000_messages_catches_up(tmp_path: Path, env: dict[str, str], report: Report) -> None:
    with fleet(tmp_path, env, "one", "two") as nodes:
        flags = ("--bootstrap", nodes[0].bootstrap)
        with running_node(tmp_path, "away", *flags, env=env) as away:
            all_see_all([*nodes, away])
        began = time.monotonic()
        ids = publish_many(nodes[0], 5000)
        published = time.monotonic() - began
        have_all(nodes, TOPIC, ids, DEADLINE_SECONDS)
        began = time.monotonic()
        with running_node(tmp_path, "away", *flags, env=env) as away:
            answered = time.monotonic()
            have_all([away], TOPIC, ids, DEADLINE_SECONDS)
            done = time.monotonic()
            assert held_by(away) == dict.fromkeys(ids, 1)
        report(
            f"5,000 messages of 1 KiB published in {published:.1f} s; a node that was down is complete "
            f"{done - began:.1f} s after its start, {done - answered:.1f} s after it answers"
        )


def test_who_joins_late_gets_all_and_then_nothing_more(tmp_path: Path, env: dict[str, str], report: Report) -> None:
    with fleet(tmp_path, env, "one", "two") as nodes:
        ids = publish_many(nodes[0], 200) | publish_many(nodes[1], 200)
        with running_node(tmp_path, "late", "--bootstrap", nodes[0].bootstrap, env=env) as late:
            began = time.monotonic()
            have_all([late], TOPIC, ids, DEADLINE_SECONDS)
            report(f"who joins late has all {len(ids)} after {time.monotonic() - began:.1f} s")
            another = late.publish_accepted(TOPIC, b"one more")
            have_all([*nodes, late], TOPIC, {another}, DEADLINE_SECONDS)
            assert held_by(late) == dict.fromkeys({*ids, another}, 1)


@pytest.mark.soak
def test_who_follows_a_topic_late_gets_at_once_what_is_too_old_for_gossip(
    tmp_path: Path, env: dict[str, str], report: Report
) -> None:
    topic = "hmmm.late"
    an_hour_behind = (sys.executable, str(Path(__file__).with_name("wrong_clock.py")), "-3600")
    with ExitStack() as stack:
        old = stack.enter_context(running_node(tmp_path, "old", env=env, within=an_hour_behind))
        late = stack.enter_context(running_node(tmp_path, "late", "--bootstrap", old.bootstrap, env=env))
        all_see_all([old, late])
        ids = {old.publish_accepted(topic, f"message {number}".encode()) for number in range(50)}
        time.sleep(QUIET_SECONDS)  # the nodes compare ever less often meanwhile
        assert not late.ids(topic)
        began = time.monotonic()
        with Client(late.api, timeout=DEADLINE_SECONDS) as client:
            stream = client.subscribe(topic, start="start")
            assert {next(stream).id for _ in ids} == ids
        report(f"who follows a topic late has all {len(ids)} of an hour ago after {time.monotonic() - began:.1f} s")


@contextmanager
def two_halves(directory: Path, cable: Cable, env: Mapping[str, str]) -> Iterator[tuple[list[Node], list[Node]]]:
    """Three nodes on each side; every one knows how to reach one on both."""
    with ExitStack() as stack:
        halves = []
        for side, ip, within in (("left", LEFT, cable.left), ("right", RIGHT, cable.right)):
            half = []
            for number in range(3):
                flags = ["--no-mdns", "--listen", f"/ip4/{ip}/tcp/{9000 + number}"]
                for known in (LEFT, RIGHT):
                    if (known, number) != (ip, 0):
                        flags += ["--bootstrap", f"/ip4/{known}/tcp/9000"]
                node = start_node(directory, f"{side}-{number}", *flags, env=env, within=within)
                stack.callback(stop, node)
                half.append(node)
            halves.append(half)
        for node in (*halves[0], *halves[1]):
            wait_until(f"{node.name} answers", node.answers)
        all_see_all([*halves[0], *halves[1]])
        yield halves[0], halves[1]


def cut_and_heal(directory: Path, env: Mapping[str, str], messages: int, seed: int) -> float:
    """Seconds from healing until all hold what both halves published meanwhile; `seed` chooses who publishes."""
    with open_cable() as cable, two_halves(directory, cable, env) as (left, right):
        before = {left[0].publish_accepted(TOPIC, b"before")}
        have_all([*left, *right], TOPIC, before)
        cable.cut()
        ids = publish_many(left[seed % 3], messages) | publish_many(right[(seed // 3) % 3], messages)
        assert held_by(left[0]).keys() & held_by(right[0]).keys() == before, "the halves were not apart"
        cable.mend()
        began = time.monotonic()
        have_all([*left, *right], TOPIC, ids | before, DEADLINE_SECONDS)
        took = time.monotonic() - began
        for node in (*left, *right):
            assert held_by(node) == dict.fromkeys(ids | before, 1)
        return took


@needs_cables
def test_two_halves_that_were_cut_apart_hold_all_after_healing(
    tmp_path: Path, env: dict[str, str], report: Report
) -> None:
    report(f"two halves, 50 messages each: complete {cut_and_heal(tmp_path, env, 50, 0):.1f} s after healing")


@needs_cables
@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_two_halves_cut_for_500_messages_each_hold_all_1000(
    tmp_path: Path, env: dict[str, str], report: Report, seed: int
) -> None:
    took = cut_and_heal(tmp_path, env, 500, seed)
    report(f"two halves, 500 messages each, seed {seed}: complete {took:.1f} s after healing")


def on_small_disk(directory: Path, kib: int) -> tuple[str, ...]:
    """Goes before a command: in a mount namespace of its own, `directory` is a disk of that size."""
    mounting = f'mount -t tmpfs -o size={kib}k none "{directory}" && exec "$@"'
    return ("unshare", "--map-root-user", "--mount", "sh", "-c", mounting, "sh")


@needs_cables
def test_a_full_disk_answers_507_and_keeps_the_rest(tmp_path: Path, env: dict[str, str], report: Report) -> None:
    """The disk goes with its node, so the neighbour shows afterwards that nothing acknowledged was lost."""
    data = tmp_path / "small"
    data.mkdir()
    with running_node(tmp_path, "large", env=env) as large:
        flags = ("--bootstrap", large.bootstrap)
        with running_node(tmp_path, "small", *flags, env=env, within=on_small_disk(data, 4096)) as small:
            all_see_all([small, large])
            accepted: set[str] = set()
            refused = None
            for number in range(2000):
                response = small.publish(TOPIC, f"{number} ".encode().ljust(16 * 1024, b"x"))
                if response.status == 202:
                    accepted.add(response.json()["id"])
                elif response.status != 429:
                    refused = response
                    break
            assert refused is not None, "the disk never got full"
            assert refused.status == 507, refused
            assert refused.headers["content-type"] == "application/problem+json"
            assert accepted
            assert accepted <= held_by(small).keys()
            have_all([large], TOPIC, accepted, DEADLINE_SECONDS)
            assert small.answers()
            # The neighbour is not held up, and what is small goes on doing what needs no disk.
            other = large.publish_accepted(TOPIC, b"elsewhere")
            assert other in held_by(large)
            assert accepted <= held_by(small).keys()
            report(f"a disk of 4 MiB took {len(accepted)} messages of 16 KiB, then 507: {refused.json()['detail']}")


def orders(documents: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The seqnos of each origin, in the order they came."""
    found: dict[str, list[int]] = {}
    for document in documents:
        found.setdefault(document["origin"], []).append(int(document["seqno"]))
    return found


@pytest.mark.parametrize("trouble", ["fail", "hang", "cut"])
def test_a_webhook_in_trouble_gets_everything_later_in_order(
    tmp_path: Path, env: dict[str, str], report: Report, trouble: str
) -> None:
    with open_webhook() as webhook, running_node(tmp_path, "calm", env=env) as calm:
        settings = {"P2PNODE_AGENT_WEBHOOK": webhook.url, "P2PNODE_AGENT_WEBHOOK_TIMEOUT_SECONDS": "1"}
        flags = ("--bootstrap", calm.bootstrap)
        with running_node(tmp_path, "served", *flags, env=env | settings) as served:
            all_see_all([calm, served])
            ids = {served.publish_accepted(TOPIC, b"before")}
            wait_until("it is delivered", lambda: len(webhook.taken) == 1)
            webhook.behaviour = trouble  # type: ignore[assignment]
            ids |= publish_many(calm, 50, callers=1) | publish_many(served, 50, callers=1)
            have_all([calm, served], TOPIC, ids)
            wait_until("it was tried and tried again", lambda: webhook.posts >= 3)
            assert len(webhook.taken) == 1
            webhook.behaviour = "take"
            began = time.monotonic()
            assert_delivered(webhook, ids)
            report(f"a webhook that did {trouble}: all {len(ids)} delivered {time.monotonic() - began:.1f} s after")
            assert not any(document.get("late") for document in webhook.taken)


def assert_delivered(webhook: Webhook, ids: set[str]) -> None:
    wait_until("all is delivered", lambda: ids <= {document["id"] for document in list(webhook.taken)}, 180)
    first_times = list({document["id"]: document for document in webhook.taken}.values())
    assert len(first_times) == len(ids)
    for seqnos in orders(first_times).values():
        assert seqnos == sorted(seqnos)


def test_a_webhook_gets_what_came_while_its_sidecar_was_killed(tmp_path: Path, env: dict[str, str]) -> None:
    with open_webhook() as webhook, running_node(tmp_path, "calm", env=env) as calm:
        settings = {"P2PNODE_AGENT_WEBHOOK": webhook.url}
        flags = ("--bootstrap", calm.bootstrap)
        served = start_node(tmp_path, "served", *flags, env=env | settings)
        try:
            wait_until("it answers", served.answers)
            all_see_all([calm, served])
            webhook.behaviour = "fail"
            ids = publish_many(calm, 20, callers=1)
            have_all([served], TOPIC, ids)
            stop(served, signal.SIGKILL)
            ids |= publish_many(calm, 20, callers=1)
            webhook.behaviour = "take"
            served = start_node(tmp_path, "served", *flags, env=env | settings)
            assert_delivered(webhook, ids)
        finally:
            with suppress(subprocess.TimeoutExpired):
                stop(served)
