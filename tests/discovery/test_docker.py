"""The Swarm API as a source of peers: right answers, wrong answers, and no answers, over real sockets.

The answers in `docker_answers` were recorded from Docker Engine 20.10 with a Swarm of one node.
"""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from multiaddr.multiaddr import Multiaddr

from p2pnode.discovery.docker import DockerSource
from p2pnode.discovery.docker_tasks import Rules, find_places, no_tasks, parse_tasks
from p2pnode.errors import InvalidRequest
from p2pnode.ports import FoundAgent, Place, Source, SourceReport
from tests.discovery.permissions import unprivileged
from tests.discovery.scripted_http import Answer, Script, ScriptedServer, serving_tcp, serving_unix
from tests.properties import many, some

ANSWERS = Path(__file__).parent / "docker_answers"
SERVICE = "CHORUS_chorus"
IN_NET = ("10.0.9.0/24",)
DISCOVERED = "Discovered Docker Swarm tasks"
COMPLETED = "Docker Swarm agent discovery completed"
TROUBLE = "Docker Swarm discovery has a trouble"
OVER = "Docker Swarm discovery's trouble is over"


def recorded(name: str) -> Any:
    return json.loads((ANSWERS / f"{name}.json").read_text())


def as_json(document: object, status: int = 200) -> Answer:
    return Answer(json.dumps(document).encode(), status, {"Content-Type": "application/json"})


NO_SUCH_SERVICE = as_json({"message": "service nope not found"}, 404)


def docker(tasks: Mapping[str, object], /, **paths: Answer) -> Script:
    """A daemon with services and their tasks: documents, or whole answers.

    `paths` replace what is at `version`, `services` or `tasks`.
    """

    def script(target: str) -> Answer:
        url = urlsplit(target)
        what = url.path.rpartition("/")[2]
        if what in paths:
            return paths[what]
        if what == "version":
            return as_json(recorded("version"))
        if what == "services":
            return as_json(recorded("services"))
        (service,) = json.loads(parse_qs(url.query)["filters"][0])["service"]
        answer = tasks.get(service, as_json({"message": f"service {service} not found"}, 404))
        return answer if isinstance(answer, Answer) else as_json(answer)

    return script


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A short path that every user of this machine can get at."""
    with tempfile.TemporaryDirectory(prefix="p2pd") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "docker.sock"


def source_at(
    url: str,
    services: Sequence[str] = (SERVICE,),
    *,
    network: str = "",
    own: Sequence[str | IPv4Network | IPv6Network] = IN_NET,
    look_seconds: float = 30.0,
    refresh_seconds: float = 0.01,
) -> DockerSource:
    def own_networks() -> list[IPv4Network | IPv6Network]:
        return [ip_network(each) for each in own]

    return DockerSource(
        url,
        services,
        network=network,
        p2p_port=9000,
        agent_port=8080,
        cluster_id="docker-unified-stack",
        refresh_seconds=refresh_seconds,
        own_networks=own_networks,
        look_seconds=look_seconds,
        rng=random.Random(7),
    )


async def looks(source: Source, count: int = 1, between: Callable[[int], None] = lambda _: None) -> list[SourceReport]:
    """The first reports of a source; `between` is called after each with how many there are."""
    reports: list[SourceReport] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            def take(report: SourceReport) -> None:
                reports.append(report)
                between(len(reports))
                if len(reports) == count:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(source.run, take)
    return reports


@asynccontextmanager
async def asked(script: Script, path: Path) -> AsyncIterator[ScriptedServer]:
    async with serving_unix(path, script) as server:
        yield server


async def look(script: Script, path: Path, services: Sequence[str] = (SERVICE,), **options: Any) -> SourceReport:
    async with asked(script, path):
        (report,) = await looks(source_at(f"unix://{path}", services, **options))
    return report


def codes(report: SourceReport) -> list[str]:
    return [trouble.code for trouble in report.troubles]


def addrs(report: SourceReport) -> list[str]:
    return [place.addr for place in report.places]


def ours(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == message]


# What is found.


async def test_each_running_task_is_a_place_with_its_agent(socket_path: Path) -> None:
    report = await look(docker({SERVICE: recorded("tasks_two_networks")}), socket_path)
    assert report.method == "docker"
    assert report.subject == f"unix://{socket_path}"
    assert report.took_seconds is not None
    assert report.took_seconds > 0
    assert report.troubles == ()
    assert report.places[0] == Place(
        "/ip4/10.0.9.3/tcp/9000",
        FoundAgent(
            id="gknl62s606cw",
            name="CHORUS-Task-1",
            endpoint="http://10.0.9.3:8080",
            p2p_addr="10.0.9.3:9000",
            cluster_id="docker-unified-stack",
        ),
    )
    assert addrs(report) == ["/ip4/10.0.9.3/tcp/9000", "/ip4/10.0.9.4/tcp/9000"]


@pytest.mark.parametrize("subnet", ["10.0.9.0/24", "10.0.12.0/24"])
async def test_all_34_agents_are_found_in_either_of_their_networks(subnet: str, socket_path: Path) -> None:
    report = await look(docker({SERVICE: recorded("tasks_fleet_of_34")}), socket_path, own=[subnet])
    assert report.troubles == ()
    assert len(set(addrs(report))) == 34
    assert {place.agent.name for place in report.places if place.agent} == {f"CHORUS-Task-{n}" for n in range(1, 35)}
    assert all(IPv4Address(addr.split("/")[2]) in IPv4Network(subnet) for addr in addrs(report))


async def test_the_first_attachment_in_reach_counts_whatever_this_node_is_in(socket_path: Path) -> None:
    both = ["192.168.1.0/24", "10.0.9.0/24", "10.0.12.0/24"]
    report = await look(docker({SERVICE: recorded("tasks_two_networks")}), socket_path, own=both)
    assert addrs(report) == ["/ip4/10.0.12.3/tcp/9000", "/ip4/10.0.12.4/tcp/9000"]


@pytest.mark.parametrize("network", ["tengig", "8k5b2nvscvtkg14qwgum877wo"])
async def test_the_named_network_counts_by_name_or_id(network: str, socket_path: Path) -> None:
    both = ["10.0.9.0/24", "10.0.12.0/24"]
    report = await look(docker({SERVICE: recorded("tasks_two_networks")}), socket_path, own=both, network=network)
    assert addrs(report) == ["/ip4/10.0.12.3/tcp/9000", "/ip4/10.0.12.4/tcp/9000"]
    assert report.troubles == ()


async def test_of_several_addresses_in_the_named_network_the_one_in_reach_counts(socket_path: Path) -> None:
    tasks = recorded("tasks_global")
    tasks[0]["NetworksAttachments"][0]["Addresses"] = ["fd00:14::3/64", "10.0.14.3/24"]
    report = await look(docker({SERVICE: tasks}), socket_path, own=["10.0.14.0/24"], network="six")
    assert addrs(report) == ["/ip4/10.0.14.3/tcp/9000"]
    assert report.troubles == ()


async def test_a_global_service_names_its_tasks_by_their_nodes(socket_path: Path) -> None:
    report = await look(docker({SERVICE: recorded("tasks_global")}), socket_path, own=["10.0.14.0/24"])
    (place,) = report.places
    assert place.agent is not None
    assert place.agent.name == "CHORUS-Task-hjz4xro98rjj"


async def test_ingress_never_counts_unless_it_is_named(socket_path: Path) -> None:
    tasks = docker({SERVICE: recorded("tasks_published_port")})
    both = ["10.0.0.0/24", "10.0.9.0/24"]
    assert addrs(await look(tasks, socket_path, own=both)) == ["/ip4/10.0.9.9/tcp/9000"]
    assert addrs(await look(tasks, socket_path, own=both, network="ingress")) == ["/ip4/10.0.0.4/tcp/9000"]
    assert codes(await look(tasks, socket_path, own=["10.0.0.0/24"])) == ["no-network-in-reach"]


async def test_an_ipv6_address_stands_in_brackets_and_in_an_ip6_multiaddr(socket_path: Path) -> None:
    tasks = recorded("tasks_global")
    tasks[0]["NetworksAttachments"][0]["Addresses"] = ["fd00:14::3/64"]
    report = await look(docker({SERVICE: tasks}), socket_path, own=["10.0.14.0/24", "fd00:14::/64"])
    (place,) = report.places
    assert place.addr == "/ip6/fd00:14::3/tcp/9000"
    assert place.agent is not None
    assert (place.agent.endpoint, place.agent.p2p_addr) == ("http://[fd00:14::3]:8080", "[fd00:14::3]:9000")


async def test_a_task_whose_health_check_has_not_passed_yet_counts(socket_path: Path) -> None:
    report = await look(docker({SERVICE: recorded("tasks_waiting_for_health")}), socket_path)
    assert recorded("tasks_waiting_for_health")[0]["Status"]["State"] == "starting"
    assert addrs(report) == ["/ip4/10.0.9.49/tcp/9000"]


@pytest.mark.parametrize("address", ["127.0.0.1/8", "0.0.0.0/0", "224.0.0.1/4", "fe80::1%eth0/64", "10.0.9", "", 7])
async def test_an_address_that_nobody_can_dial_is_passed_over(address: object, socket_path: Path) -> None:
    tasks = recorded("tasks_two_networks")[:1]
    tasks[0]["NetworksAttachments"][1]["Addresses"] = [address, "10.0.9.99/24"]
    report = await look(
        docker({SERVICE: tasks}), socket_path, own=["0.0.0.0/1", "224.0.0.0/4", "fe80::/10"], network="CHORUS_net"
    )
    assert addrs(report) == ["/ip4/10.0.9.99/tcp/9000"]


async def test_the_same_place_in_two_services_is_one_place(socket_path: Path) -> None:
    tasks = recorded("tasks_two_networks")
    report = await look(docker({"a": tasks, "b": tasks}), socket_path, ["a", "b"])
    assert len(report.places) == 2


@pytest.mark.parametrize("scheme", ["tcp", "http"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_socket_proxy_is_asked_over_tcp(scheme: str, host: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    async with serving_tcp(host, docker({SERVICE: recorded("tasks_two_networks")})) as (_, port):
        (report,) = await looks(source_at(f"{scheme}://{shown}:{port}"))
    assert len(report.places) == 2
    assert report.subject == f"{scheme}://{shown}:{port}"


@pytest.mark.parametrize("url", ["ssh://host", "https://host:2376", "unix://docker.sock", "tcp://host", "host:1", ""])
def test_a_url_of_another_form_is_refused_with_those_that_work(url: str) -> None:
    with pytest.raises(InvalidRequest, match="unix:///PATH"):
        source_at(url)


# Versions.


@pytest.mark.parametrize(
    ("theirs", "least", "prefix"),
    [("1.41", "1.12", "/v1.41"), ("1.52", "1.24", "/v1.41"), ("1.52", "1.44", "/v1.44"), ("1.30", "1.12", "/v1.30")],
)
async def test_the_version_asked_in_is_one_that_both_speak(
    theirs: str, least: str, prefix: str, socket_path: Path
) -> None:
    version = as_json({"ApiVersion": theirs, "MinAPIVersion": least})
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}, version=version), socket_path) as server:
        (report,) = await looks(source_at(f"unix://{socket_path}"))
    assert len(report.places) == 2
    assert server.targets[0] == "/version"
    assert server.targets[1].startswith(f"{prefix}/tasks?filters=")


async def test_a_daemon_from_before_swarm_is_refused_with_both_versions(socket_path: Path) -> None:
    report = await look(docker({}, version=as_json({"ApiVersion": "1.23"})), socket_path)
    assert codes(report) == ["docker-answer"]
    assert "1.23" in report.troubles[0].problem
    assert "1.24" in report.troubles[0].problem


async def test_a_proxy_that_hides_the_version_is_asked_without_one(socket_path: Path) -> None:
    script = docker({SERVICE: recorded("tasks_two_networks")}, version=Answer(b"<h1>403</h1>", 403))
    async with asked(script, socket_path) as server:
        (report,) = await looks(source_at(f"unix://{socket_path}"))
    assert len(report.places) == 2
    assert server.targets[1].startswith("/tasks?")


async def test_a_daemon_that_calls_the_version_too_new_is_quoted(socket_path: Path) -> None:
    report = await look(docker({SERVICE: as_json(recorded("version_too_new"), 400)}), socket_path)
    assert codes(report) == ["docker-answer"]
    assert "Maximum supported API version is 1.41" in report.troubles[0].problem
    assert "upgrade" in report.troubles[0].fix


# Why less is found than there should be.


async def test_a_network_that_this_node_is_not_in_is_named_with_both_sides_subnets(socket_path: Path) -> None:
    tasks = recorded("tasks_fleet_of_34")
    for task in tasks[:9]:
        del task["NetworksAttachments"][1]
    report = await look(docker({SERVICE: tasks}), socket_path)
    assert len(report.places) == 25
    (trouble,) = report.troubles
    assert trouble.code == "no-network-in-reach"
    for evidence in ("9 of 34", SERVICE, "tengig (10.0.12.0/24)", "10.0.9.0/24"):
        assert evidence in trouble.problem
    assert "docker service update --network-add tengig" in trouble.fix
    assert "discovery.docker_network=tengig" in trouble.fix


async def test_the_networks_in_reach_are_asked_for_at_every_look(socket_path: Path) -> None:
    own: list[IPv4Network | IPv6Network] = []
    source = source_at(f"unix://{socket_path}", own=own)
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}), socket_path):
        first, second = await looks(source, 2, lambda _: own.append(IPv4Network("10.0.9.0/24")))
    assert codes(first) == ["no-network-in-reach"]
    assert "this node in none" in first.troubles[0].problem
    assert len(second.places) == 2
    assert second.troubles == ()


@pytest.mark.parametrize(
    ("answer", "network"), [("tasks_no_network", "no network at all"), ("tasks_host_network", "host (no addresses)")]
)
async def test_tasks_without_addresses_are_skipped_and_said_to_have_none(
    answer: str, network: str, socket_path: Path
) -> None:
    report = await look(docker({SERVICE: recorded(answer)}), socket_path)
    assert report.places == ()
    assert codes(report) == ["no-network-in-reach"]
    assert network in report.troubles[0].problem


async def test_a_network_that_no_task_is_in_is_a_trouble_that_lists_those_they_are_in(socket_path: Path) -> None:
    report = await look(docker({SERVICE: recorded("tasks_two_networks")}), socket_path, network="chorus_net")
    (trouble,) = report.troubles
    assert trouble.code == "no-such-network"
    assert "tengig (10.0.12.0/24), CHORUS_net (10.0.9.0/24)" in trouble.problem
    assert "set discovery.docker_network to CHORUS_net" in trouble.fix


async def test_a_named_network_that_some_tasks_lack_is_counted(socket_path: Path) -> None:
    tasks = recorded("tasks_two_networks")
    del tasks[0]["NetworksAttachments"][1]
    report = await look(docker({SERVICE: tasks}), socket_path, network="CHORUS_net")
    assert addrs(report) == ["/ip4/10.0.9.4/tcp/9000"]
    assert codes(report) == ["no-such-network"]
    assert "1 of 2" in report.troubles[0].problem
    assert report.troubles[0].fix == f"docker service update --network-add CHORUS_net {SERVICE}"


async def test_a_named_overlay_that_this_node_is_not_in_keeps_its_places_with_a_warning(socket_path: Path) -> None:
    report = await look(docker({SERVICE: recorded("tasks_two_networks")}), socket_path, network="tengig")
    assert len(report.places) == 2
    assert codes(report) == ["no-network-in-reach"]


async def test_a_named_network_of_another_kind_may_be_reached_by_a_router(socket_path: Path) -> None:
    tasks = recorded("tasks_two_networks")
    for task in tasks:
        task["NetworksAttachments"][0]["Network"]["DriverState"]["Name"] = "macvlan"
    report = await look(docker({SERVICE: tasks}), socket_path, network="tengig")
    assert len(report.places) == 2
    assert report.troubles == ()


async def test_an_unknown_service_hides_no_other_and_near_names_are_offered(socket_path: Path) -> None:
    script = docker({SERVICE: recorded("tasks_two_networks")})
    report = await look(script, socket_path, ["chorus", SERVICE])
    assert len(report.places) == 2
    (trouble,) = report.troubles
    assert trouble.code == "no-such-service"
    assert "'chorus'" in trouble.problem
    assert "did you mean CHORUS_chorus" in trouble.problem
    assert trouble.fix.endswith(f"CHORUS_SERVICE_NAME to {SERVICE}")


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        (as_json(recorded("services")), "there are CHORUS_chorus, CHORUS_fleet"),
        (as_json([]), "there is none at all"),
        (Answer(b"forbidden", 403), "knows no service 'zzz'"),
        (Answer(b"{", 200), "knows no service 'zzz'"),
    ],
)
async def test_an_unknown_service_is_told_whatever_the_list_of_services_says(
    services: Answer, expected: str, socket_path: Path
) -> None:
    report = await look(docker({}, services=services), socket_path, ["zzz"])
    assert codes(report) == ["no-such-service"]
    assert expected in report.troubles[0].problem
    assert report.troubles[0].fix.startswith("docker ")


@pytest.mark.parametrize(
    ("listed", "ended", "why"),
    [
        ("tasks_pending", None, "pending: no suitable node (scheduling constraints not satisfied on 1 node)"),
        ("tasks_none", "tasks_rejected", "rejected: invalid mount config"),
        ("tasks_none", "tasks_none", "no tasks at all"),
    ],
)
async def test_a_service_without_running_tasks_is_told_with_what_its_tasks_say(
    listed: str, ended: str | None, why: str, socket_path: Path
) -> None:
    def script(target: str) -> Answer:
        if "tasks" in target and "desired-state" not in target:
            assert ended is not None
            return as_json(recorded(ended))
        return docker({SERVICE: recorded(listed)})(target)

    report = await look(script, socket_path)
    assert report.places == ()
    (trouble,) = report.troubles
    assert trouble.code == "no-tasks"
    assert why in trouble.problem
    assert trouble.fix.startswith(f"docker service ps --no-trunc {SERVICE}")


async def test_a_node_that_is_no_manager_is_told_what_to_do(socket_path: Path) -> None:
    report = await look(docker({SERVICE: as_json(recorded("not_a_manager"), 503)}), socket_path)
    (trouble,) = report.troubles
    assert trouble.code == "docker-no-manager"
    assert "This node is not a swarm manager" in trouble.problem
    assert "node.role == manager" in trouble.fix
    assert "dns:tasks.SERVICE" in trouble.fix


async def test_a_proxy_that_forbids_tasks_is_told_which_permissions_to_give(socket_path: Path) -> None:
    report = await look(docker({SERVICE: Answer(b"<h1>403 Forbidden</h1>", 403)}), socket_path)
    (trouble,) = report.troubles
    assert trouble.code == "docker-socket-forbidden"
    assert "TASKS=1 and SERVICES=1" in trouble.fix


async def test_a_missing_socket_is_told_how_to_mount_it(socket_path: Path) -> None:
    (report,) = await looks(source_at(f"unix://{socket_path}"))
    (trouble,) = report.troubles
    assert trouble.code == "docker-socket-missing"
    assert str(socket_path) in trouble.problem
    assert f"/var/run/docker.sock:{socket_path}:ro" in trouble.fix
    assert "dns:tasks.SERVICE" in trouble.fix


async def test_a_directory_in_the_sockets_place_is_explained(socket_path: Path) -> None:
    os.mkdir(socket_path)
    (report,) = await looks(source_at(f"unix://{socket_path}"))
    assert codes(report) == ["docker-socket-missing"]
    assert "directory" in report.troubles[0].problem


async def test_a_socket_that_may_not_be_opened_is_told_with_owner_and_group(socket_path: Path) -> None:
    assert httpx.__version__  # Imported while its files can be read.
    async with asked(docker({}), socket_path):
        os.chmod(socket_path, 0)
        with unprivileged():
            (report,) = await looks(source_at(f"unix://{socket_path}"))
            gid = os.stat(socket_path).st_gid
    (trouble,) = report.troubles
    assert trouble.code == "docker-socket-forbidden"
    assert f"gid {gid}, mode 0000" in trouble.problem
    assert f"--group-add {gid}" in trouble.fix


async def test_a_socket_with_nobody_behind_it_is_unreachable(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(socket_path))
        (report,) = await looks(source_at(f"unix://{socket_path}"))
    (trouble,) = report.troubles
    assert trouble.code == "docker-unreachable"
    assert os.strerror(errno.ECONNREFUSED) in trouble.problem
    assert "systemctl start docker" in trouble.fix


async def test_a_port_with_nobody_behind_it_is_unreachable() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        (report,) = await looks(source_at(f"tcp://127.0.0.1:{nobody.getsockname()[1]}"))
    (trouble,) = report.troubles
    assert trouble.code == "docker-unreachable"
    assert os.strerror(errno.ECONNREFUSED) in trouble.problem
    assert "DOCKER_HOST" in trouble.fix


async def test_a_path_too_long_for_a_socket_is_unreachable_not_an_exception(socket_path: Path) -> None:
    (report,) = await looks(source_at(f"unix://{socket_path}{'x' * 200}"))
    assert codes(report) == ["docker-unreachable"]


# Answers that are none.


@pytest.mark.parametrize("hang", ["before", "after-headers"])
@pytest.mark.parametrize("where", ["version", "tasks"])
async def test_a_daemon_that_never_answers_is_given_up_and_asked_again(
    hang: Any, where: str, socket_path: Path
) -> None:
    good = docker({SERVICE: recorded("tasks_two_networks")})
    async with asked(docker({}, **{where: Answer(b"[]", hang=hang)}), socket_path) as server:

        def mend(_: int) -> None:
            server.script = good

        hung, mended = await looks(source_at(f"unix://{socket_path}", look_seconds=0.5), 2, mend)
    assert codes(hung) == ["docker-unreachable"]
    assert "within 0.5 s" in hung.troubles[0].problem
    assert len(mended.places) == 2
    assert mended.troubles == ()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>nginx</html>"),
        Answer(b""),
        Answer(b"\xff\xfe\x00"),
        Answer(b"[" * 200_000),
        Answer(b"1" * 10_000),
        as_json({"message": "fine"}),
        as_json(None),
        as_json("tasks"),
        Answer(b"[{}", framing="truncated"),
        Answer(b"SSH-2.0-OpenSSH_9.2\r\n", framing="raw"),
        Answer(b"", framing="raw"),
        Answer(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", framing="raw"),
        Answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", framing="raw"),
        Answer(b"[]", headers={"X-Long": "x" * 200_000}),
        Answer(b"\x1f\x8b\x08\x00" + bytes(64), headers={"Content-Encoding": "gzip"}),
        Answer(b"", 301, {"Location": "http://elsewhere:2375/"}),
        Answer(b"", 302, {"Location": "http://[::1/"}),
        Answer(b"", 204),
        Answer(b"Client sent an HTTP request to an HTTPS server.\n", 400),
        as_json({"message": ["no", "text"]}, 400),
        as_json({"message": "not found"}, 404),
        as_json({"message": "rpc error: the swarm does not have a leader"}, 500),
        Answer(b"upstream is down", 502),
        Answer(b"busy", 503),
        Answer(b"?", 799),
    ],
    ids=lambda answer: f"{answer.status}-{answer.framing}-{answer.body[:12]!r}",
)
@pytest.mark.parametrize("where", ["version", "tasks"])
async def test_an_answer_that_is_none_is_a_trouble_with_a_fix_and_takes_no_places(
    where: str, answer: Answer, socket_path: Path
) -> None:
    tasks = recorded("tasks_two_networks")
    async with asked(docker({SERVICE: tasks}), socket_path) as server:

        def break_it(_: int) -> None:
            server.script = docker({SERVICE: tasks}, **{where: answer})

        before, after = await looks(source_at(f"unix://{socket_path}"), 2, break_it)
    assert before.troubles == ()
    assert after.places == before.places
    if where == "version" and answer.status == 404:
        assert after.troubles == ()  # So a proxy hides the version; the tasks are asked for without.
        return
    (trouble,) = after.troubles
    assert trouble.code in ("docker-answer", "docker-unreachable", "docker-no-manager")
    assert trouble.problem.isprintable()
    assert len(trouble.problem) < 600
    assert trouble.fix


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"])
async def test_something_else_that_listens_there_is_no_docker(said: bytes, socket_path: Path) -> None:
    report = await look(docker({}, version=Answer(said, framing="raw")), socket_path)
    assert codes(report) == ["docker-answer"]
    assert "breaks HTTP" in report.troubles[0].problem


async def test_a_redirect_is_not_followed(socket_path: Path) -> None:
    redirect = Answer(b"", 307, {"Location": "/elsewhere"})
    async with asked(docker({SERVICE: redirect}), socket_path) as server:
        (report,) = await looks(source_at(f"unix://{socket_path}"))
    assert len(server.targets) == 2
    assert "redirects are not followed" in report.troubles[0].fix


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_answer_of_100_mib_is_cut_off_and_the_next_look_is_good(framing: Any, socket_path: Path) -> None:
    huge = Answer(b" " * (1 << 20), framing=framing, times=100)
    good = docker({SERVICE: recorded("tasks_two_networks")})
    async with asked(docker({SERVICE: huge}), socket_path) as server:
        sent: list[int] = []

        def mend(_: int) -> None:
            sent.append(server.bodies_sent)
            server.script = good

        first, second = await looks(source_at(f"unix://{socket_path}"), 2, mend)
    assert codes(first) == ["docker-answer"]
    assert "longer than" in first.troubles[0].problem
    assert sent[0] < 50
    assert len(second.places) == 2


async def test_one_service_answered_with_an_error_takes_nothing_from_the_other(socket_path: Path) -> None:
    good, bad = recorded("tasks_two_networks"), as_json({"message": "boom"}, 500)
    report = await look(docker({"a": bad, "b": good}), socket_path, ["a", "b"])
    assert len(report.places) == 2
    assert codes(report) == ["docker-answer"]
    assert "500: boom" in report.troubles[0].problem


async def test_tasks_without_an_id_are_counted_and_the_others_found(socket_path: Path) -> None:
    tasks = [{}, None, {"ID": ""}, {"ID": "\ud800"}, *recorded("tasks_two_networks")]
    report = await look(docker({SERVICE: tasks}), socket_path)
    assert len(report.places) == 2
    assert codes(report) == ["docker-answer"]
    assert "4 of 6" in report.troubles[0].problem


def _mangled(document: Any, data: st.DataObject) -> Any:
    """`document` with some of its parts replaced by anything or left out."""
    document = copy.deepcopy(document)
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("10.0.9.7/24"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=4,
    )
    for _ in range(data.draw(st.integers(1, 6))):
        spots: list[tuple[Any, Any]] = []
        left = [document]
        while left:
            each = left.pop()
            keys: Sequence[Any] = list(each) if isinstance(each, dict) else range(len(each))
            spots.extend((each, key) for key in keys)
            left.extend(each[key] for key in keys if isinstance(each[key], dict | list))
        if not spots:
            break
        where, key = spots[data.draw(st.integers(0, len(spots) - 1))]
        if data.draw(st.booleans()):
            where[key] = data.draw(anything)
        else:
            del where[key]
    return document


_TASK_ANSWERS = [recorded(path.stem) for path in sorted(ANSWERS.glob("tasks_*.json")) if path.stem != "tasks_none"]


@many
@given(st.data())
def test_whatever_the_types_in_an_answer_places_can_be_dialled_and_troubles_read(data: st.DataObject) -> None:
    rules = Rules(
        network=data.draw(st.sampled_from(["", "tengig", "x"])),
        own=(IPv4Network("10.0.0.0/16"), IPv6Network("::/0")),
        p2p_port=9000,
        agent_port=8080,
        cluster_id="c",
    )
    answer = data.draw(st.sampled_from(_TASK_ANSWERS))[:3]
    tasks = list(parse_tasks(_mangled(answer, data)))
    places, troubles = find_places(SERVICE, tasks, rules)
    for place in places:
        assert str(Multiaddr(place.addr)) == place.addr
        assert place.agent is not None
        assert place.agent.id.isascii()
        assert len(place.agent.id) in range(1, 13)
        assert place.agent.name.isascii()
    for trouble in (*troubles, no_tasks(SERVICE, tasks)):
        assert trouble.problem.isascii()
        assert trouble.problem.isprintable()
        assert trouble.fix.isprintable()


@some
@given(st.data())
def test_whatever_json_answers_a_look_ends_in_a_report(data: st.DataObject) -> None:
    version = as_json(_mangled(recorded("version"), data))
    services = as_json(_mangled(recorded("services"), data))
    tasks = as_json(_mangled(recorded("tasks_two_networks"), data))

    async def one_look() -> SourceReport:
        with tempfile.TemporaryDirectory(prefix="p2pd") as name:
            script = docker({SERVICE: tasks}, version=version, services=services)
            return await look(script, Path(name) / "d.sock", [SERVICE, "nope"])

    report = trio.run(one_look)
    assert codes(report)  # There is no service `nope`, or the version is none.
    assert all(trouble.problem.isprintable() for trouble in report.troubles)


# Over time.


async def test_looks_are_a_refresh_apart_give_or_take_a_tenth(
    socket_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    times: list[float] = []
    source = source_at(f"unix://{socket_path}", refresh_seconds=4.0)
    await looks(source, 12, lambda _: times.append(trio.current_time()))
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(3.6 <= pause <= 4.4 for pause in pauses)
    assert len(set(pauses)) > 6


async def test_the_last_places_stay_through_a_failure_and_go_when_the_service_does(socket_path: Path) -> None:
    source = source_at(f"unix://{socket_path}")
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}), socket_path):
        (found,) = await looks(source)
    (gone,) = await looks(source)
    assert codes(gone) == ["docker-socket-missing"]
    assert gone.places == found.places
    async with asked(docker({}), socket_path):
        (removed,) = await looks(source)
    assert codes(removed) == ["no-such-service"]
    assert removed.places == ()


async def test_a_scaled_service_is_followed(socket_path: Path) -> None:
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}), socket_path) as server:

        def scale(_: int) -> None:
            server.script = docker({SERVICE: recorded("tasks_fleet_of_34")})

        first, second = await looks(source_at(f"unix://{socket_path}"), 2, scale)
    assert (len(first.places), len(second.places)) == (2, 34)


async def test_the_same_answer_is_read_anew_when_this_node_moved_to_another_network(socket_path: Path) -> None:
    own: list[IPv4Network | IPv6Network] = [IPv4Network("10.0.9.0/24")]

    def move(count: int) -> None:
        if count == 2:
            own[:] = [IPv4Network("10.0.12.0/24")]

    source = source_at(f"unix://{socket_path}", own=own)
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}), socket_path):
        first, second, third = await looks(source, 3, move)
    assert second.places == first.places
    assert addrs(third) == ["/ip4/10.0.12.3/tcp/9000", "/ip4/10.0.12.4/tcp/9000"]


async def test_the_same_good_answer_after_a_failure_is_good_again(socket_path: Path) -> None:
    good = docker({SERVICE: recorded("tasks_two_networks")})
    async with asked(good, socket_path) as server:

        def change(count: int) -> None:
            server.script = docker({SERVICE: Answer(b"?", 500)}) if count == 1 else good

        first, second, third = await looks(source_at(f"unix://{socket_path}"), 3, change)
    assert codes(second) == ["docker-answer"]
    assert (third.places, third.troubles) == (first.places, ())


async def test_no_connection_outlives_a_look_even_a_cancelled_one(socket_path: Path) -> None:
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}), socket_path) as server:
        await looks(source_at(f"unix://{socket_path}"), 3)
        server.script = docker({SERVICE: Answer(b"[]", hang="after-headers")})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source_at(f"unix://{socket_path}").run, lambda _: None)
            with trio.fail_after(30):
                while len(server.targets) < 8:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        server.script = docker({SERVICE: recorded("tasks_two_networks")})
        await looks(source_at(f"unix://{socket_path}"))
        with trio.fail_after(30):
            while server.open_connections > 1:  # The one that hangs never looks at its client.
                await trio.lowlevel.checkpoint()


async def test_the_known_log_lines_are_info_when_the_result_changed_and_debug_otherwise(
    socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="p2pnode")
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}), socket_path) as server:

        def scale(count: int) -> None:
            if count == 2:
                server.script = docker({SERVICE: recorded("tasks_fleet_of_34")})

        await looks(source_at(f"unix://{socket_path}"), 3, scale)
    info, debug = logging.INFO, logging.DEBUG
    assert [(r.levelno, vars(r)["task_count"], vars(r)["service"]) for r in ours(caplog, DISCOVERED)] == [
        (info, 2, SERVICE),
        (debug, 2, SERVICE),
        (info, 34, SERVICE),
    ]
    assert [(r.levelno, vars(r)["discovered"], vars(r)["total_tasks"]) for r in ours(caplog, COMPLETED)] == [
        (info, 2, 2),
        (debug, 2, 2),
        (info, 34, 34),
    ]


async def test_a_trouble_is_logged_once_when_it_appears_and_once_when_it_is_over(
    socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="p2pnode")
    source = source_at(f"unix://{socket_path}", [SERVICE, "nope"])
    await looks(source, 3)
    assert [vars(each)["code"] for each in ours(caplog, TROUBLE)] == ["docker-socket-missing"]
    assert ours(caplog, TROUBLE)[0].levelno == logging.WARNING
    assert not ours(caplog, COMPLETED)
    async with asked(docker({SERVICE: recorded("tasks_two_networks")}), socket_path):
        await looks(source, 3)
    assert [vars(each)["code"] for each in ours(caplog, OVER)] == ["docker-socket-missing"]
    assert [vars(each)["code"] for each in ours(caplog, TROUBLE)] == ["docker-socket-missing", "no-such-service"]
    caplog.clear()
    await looks(source, 2)
    assert not ours(caplog, OVER)  # What cannot be seen is not over.
    async with asked(docker({SERVICE: recorded("tasks_two_networks"), "nope": recorded("tasks_global")}), socket_path):
        await looks(source)
    assert [vars(each)["code"] for each in ours(caplog, TROUBLE)] == ["docker-socket-missing", "no-network-in-reach"]
    assert {vars(each)["code"] for each in ours(caplog, OVER)} == {"docker-socket-missing", "no-such-service"}


async def test_the_libraries_say_nothing_below_a_warning_of_their_own(
    socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await look(docker({SERVICE: recorded("tasks_two_networks")}), socket_path)
    assert {record.name for record in caplog.records} == {"p2pnode.discovery.docker"}
