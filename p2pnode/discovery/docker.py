"""Finds peers by asking a Docker Swarm manager for the tasks of the agents' services, again and again."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

import trio

from p2pnode.discovery.docker_api import DockerApi, open_docker_api, split_docker_url, unreachable
from p2pnode.discovery.docker_tasks import LIVE, Rules, find_places, no_such_service, no_tasks, parse_tasks
from p2pnode.errors import Unavailable
from p2pnode.ports import Place, Report, SourceReport, Trouble

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""Longest look: a daemon that accepts and never answers must not keep it from trying again."""

MAX_TASKS: Final = 10_000
"""Tasks of one service that are looked at; ten times what the design is for."""

_JITTER: Final = 0.1
_WHOLE: Final = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a service was found to be."""

    task_count: int
    places: tuple[Place, ...]
    troubles: tuple[Trouble, ...]

    @property
    def result(self) -> tuple[int, tuple[Place, ...]]:
        return self.task_count, self.places


@dataclass(slots=True)
class _Known:
    """What is known of a service.

    Args:
        found: the last it was found to be, whatever failed since; None before the first answer.
        read: digest of the answer and the rules that made it so: the same again, if all was well, is not read again.
    """

    found: _Found | None = None
    read: tuple[bytes, Rules] | None = None


@dataclass(slots=True)
class _Look:
    """One look.

    Args:
        troubles: by service (empty: of the API itself) and code.
        unseen: services that nothing could be learnt of.
        changed: some service's result is another than last time.
    """

    troubles: dict[tuple[str, str], Trouble] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    changed: bool = False


class DockerSource:
    """The live tasks of some services, each with the agent that is there.

    Every look is reported, with all troubles of that look. Places stay through a failure; they go when the daemon
    says that they are gone. A service that is not there, or is answered with an error, takes nothing from the others.

    Args:
        url: `unix:///PATH`, `tcp://HOST:PORT` or `http://HOST:PORT`.
        services: names (or ids) of services.
        network: name or id of the network whose addresses count; empty: of each task the first in reach.
        p2p_port: where the sidecars listen.
        agent_port: where the agents serve HTTP.
        cluster_id: the agents' cluster.
        refresh_seconds: pause between two looks, give or take a tenth.
        own_networks: the networks that this node has addresses in, asked for at every look.
        look_seconds: longest look.
        rng: for the pause; by default one of its own, made when it runs.

    Raises:
        InvalidRequest: `url` has another form.
    """

    def __init__(
        self,
        url: str,
        services: Sequence[str],
        *,
        network: str,
        p2p_port: int,
        agent_port: int,
        cluster_id: str,
        refresh_seconds: float,
        own_networks: Callable[[], Sequence[IPv4Network | IPv6Network]],
        look_seconds: float = LOOK_SECONDS,
        rng: random.Random | None = None,
    ) -> None:
        split_docker_url(url)
        self._url = url
        self._services = {service: _Known() for service in services}
        self._network = network
        self._p2p_port = p2p_port
        self._agent_port = agent_port
        self._cluster_id = cluster_id
        self._refresh_seconds = refresh_seconds
        self._own_networks = own_networks
        self._look_seconds = look_seconds
        self._rng = rng
        self._told: dict[tuple[str, str], Trouble] = {}

    @property
    def method(self) -> Literal["docker"]:
        return "docker"

    @property
    def subject(self) -> str:
        return self._url

    async def run(self, report: Report) -> None:
        """Look and report, until cancelled."""
        rng = self._rng or random.Random()
        while True:
            report(await self._reported_look())
            await trio.sleep(self._refresh_seconds * rng.uniform(1 - _JITTER, 1 + _JITTER))

    async def _reported_look(self) -> SourceReport:
        started = trio.current_time()
        look = _Look()
        failure: Unavailable | None = None
        try:
            with trio.move_on_after(self._look_seconds) as patience:
                async with open_docker_api(self._url) as api:
                    await self._ask(api, look)
            if patience.cancelled_caught:
                failure = unreachable(self._url, f"no complete answer within {self._look_seconds:g} s")
        except Unavailable as error:
            failure = error
        if failure is not None:
            look.unseen.update(self._services)
            look.troubles[_WHOLE, failure.reason] = _trouble(failure)
        self._tell(look)
        took = trio.current_time() - started
        return SourceReport(self.method, self.subject, self._places(), tuple(look.troubles.values()), took)

    async def _ask(self, api: DockerApi, look: _Look) -> None:
        rules = Rules(
            network=self._network,
            own=tuple(self._own_networks()),
            p2p_port=self._p2p_port,
            agent_port=self._agent_port,
            cluster_id=self._cluster_id,
        )
        for service, known in self._services.items():
            try:
                found = await self._found(api, service, known, rules)
            except Unavailable as error:
                if error.reason == "docker-answer":
                    look.unseen.add(service)
                    look.troubles[service, error.reason] = _trouble(error)
                    continue
                if error.reason != "no-such-service":
                    raise
                found = _Found(0, (), (no_such_service(service, error.detail, await _names(api)),))
            look.troubles.update({(service, trouble.code): trouble for trouble in found.troubles})
            changed = known.found is None or found.result != known.found.result
            look.changed = look.changed or changed
            known.found = found
            level = logging.INFO if changed else logging.DEBUG
            log.log(level, "Discovered Docker Swarm tasks", extra={"task_count": found.task_count, "service": service})

    async def _found(self, api: DockerApi, service: str, known: _Known, rules: Rules) -> _Found:
        listing = await api.tasks(service)
        if known.found is not None and not known.found.troubles and known.read == (listing.digest, rules):
            return known.found
        raw = listing.items()
        tasks = list(parse_tasks(raw[:MAX_TASKS]))
        places, troubles = find_places(service, tasks, rules)
        if not any(task.state in LIVE for task in tasks):
            ended = [] if tasks else (await api.tasks(service, desired=None)).items()
            troubles += (no_tasks(service, tasks or list(parse_tasks(ended[:MAX_TASKS]))),)
        if len(tasks) < len(raw):
            troubles += (
                Trouble(
                    "docker-answer",
                    f"Docker at {self._url}: {len(raw) - len(tasks)} of {len(raw)} tasks of {service} cannot be used: "
                    f"they have no id, or come after the first {MAX_TASKS}",
                    f"docker service ps {service}; is that the Docker API?",
                ),
            )
        known.read = (listing.digest, rules)
        return _Found(len(tasks), places, troubles)

    def _last_found(self) -> list[_Found]:
        return [known.found for known in self._services.values() if known.found is not None]

    def _places(self) -> tuple[Place, ...]:
        return tuple({place.addr: place for found in self._last_found() for place in found.places}.values())

    def _tell(self, look: _Look) -> None:
        """Log what is new: a trouble once when it appears and once when it is gone, the result when it changed."""
        for key, trouble in look.troubles.items():
            if key not in self._told:
                log.warning(
                    "Docker Swarm discovery has a trouble",
                    extra={"code": trouble.code, "problem": trouble.problem, "fix": trouble.fix},
                )
        kept = {key: each for key, each in self._told.items() if key[0] in look.unseen}
        for service, code in self._told.keys() - look.troubles.keys() - kept.keys():
            log.info("Docker Swarm discovery's trouble is over", extra={"code": code, "service": service})
        self._told = kept | look.troubles
        if look.unseen >= self._services.keys():
            return
        level = logging.INFO if look.changed else logging.DEBUG
        total = sum(found.task_count for found in self._last_found())
        log.log(
            level,
            "Docker Swarm agent discovery completed",
            extra={"discovered": len(self._places()), "total_tasks": total},
        )


async def _names(api: DockerApi) -> list[str] | None:
    """All services, to name those that may be meant; None when they cannot be listed."""
    try:
        return await api.services()
    except Unavailable:
        return None


def _trouble(error: Unavailable) -> Trouble:
    return Trouble(error.reason, error.detail, error.hint)
