"""From the Swarm API's tasks to places to dial: which tasks count, and which of their addresses this node reaches.

Facts of Docker Engine 20.10, API 1.41, seen in its answers: the attachments of a task stand in the order of the
networks' ids, whatever the order in which they were asked for; a task has its addresses from before it is scheduled;
while a health check has not passed yet a task is `starting`; the `host` network is an attachment without addresses;
an overlay network with IPv6 still lists IPv4 addresses only; tasks of a global service have no `Slot`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
)
from typing import Any, Final, TypeGuard

from p2pnode.discovery.docker_api import clean
from p2pnode.ports import FoundAgent, Place, Trouble

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

LIVE: Final = frozenset({"running", "starting"})
"""States in which a sidecar may listen. `starting` counts: so is a task called until its health check passes, and a
health check that waits for peers would otherwise never pass. Before (`pending`, `preparing`, …) nobody listens."""

_MOST_LISTED: Final = 8
_AGENT_ID_CHARS: Final = 12


@dataclass(frozen=True, slots=True)
class Attachment:
    """One network of a task.

    Args:
        network: its name.
        network_id: its id.
        driver: `overlay`, `host`, …
        ingress: it is the network of published ports, which carries no traffic between services.
        addresses: the task's own in it.
        cidrs: the same as the API writes them, with the subnet's prefix.
    """

    network: str
    network_id: str
    driver: str
    ingress: bool
    addresses: tuple[Address, ...]
    cidrs: tuple[str, ...]

    def __str__(self) -> str:
        subnets = ", ".join(sorted({_subnet(each) for each in self.cidrs}))
        return f"{self.network or self.network_id} ({subnets or 'no addresses'})"


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its id, `slot` (of a global service the node's id, shortened), state, last error, networks."""

    id: str
    slot: str
    state: str
    error: str
    created: str
    attachments: tuple[Attachment, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """How places are made of tasks.

    Args:
        network: name or id of the network whose addresses count; empty: the first in reach.
        own: networks that this node has addresses in.
        p2p_port: where sidecars listen.
        agent_port: where agents serve HTTP.
        cluster_id: the cluster they belong to.
    """

    network: str
    own: tuple[Network, ...]
    p2p_port: int
    agent_port: int
    cluster_id: str


def parse_tasks(raw: Iterable[object]) -> Iterator[Task]:
    """The tasks in an answer; what is no task, or has no usable id, is left out."""
    for each in raw:
        task = _mapping(each)
        task_id, slot = task.get("ID"), task.get("Slot")
        if not _is_id(task_id):
            continue
        node = task.get("NodeID")
        numbered = isinstance(slot, int) and not isinstance(slot, bool) and 0 < slot < 1 << 63
        status = _mapping(task.get("Status"))
        yield Task(
            id=task_id,
            slot=str(slot) if numbered else (node if _is_id(node) else task_id)[:_AGENT_ID_CHARS],
            state=_text(status.get("State")),
            error=_text(status.get("Err")),
            created=_text(task.get("CreatedAt")),
            attachments=tuple(_attachments(task.get("NetworksAttachments"))),
        )


def find_places(service: str, tasks: Sequence[Task], rules: Rules) -> tuple[tuple[Place, ...], tuple[Trouble, ...]]:
    """A place for each live task that can be reached, in the order of the answer, and why others have none."""
    live = [task for task in tasks if task.state in LIVE]
    places: dict[str, Place] = {}
    missed: list[Task] = []
    for task in live:
        address = _chosen(task, rules)
        if address is None:
            missed.append(task)
        else:
            addr = f"/ip{address.version}/{address}/tcp/{rules.p2p_port}"
            places.setdefault(addr, Place(addr, _agent(task, address, rules)))
    return tuple(places.values()), tuple(_out_of_reach(service, live, missed, rules))


def no_tasks(service: str, tasks: Sequence[Task]) -> Trouble:
    """Why a service that exists has no live task, as far as its tasks say.

    Args:
        tasks: all of them, those that ended, too.
    """
    newest = sorted(tasks, key=lambda task: task.created, reverse=True)
    told = [task for task in newest if task.error]
    states = Counter(task.state or "unknown" for task in newest)
    if told:
        why = f"the newest that says why: {told[0].state or 'unknown'}: {told[0].error}"
    elif states:
        why = f"its tasks are {', '.join(f'{state} ({count})' for state, count in states.most_common(_MOST_LISTED))}"
    else:
        why = "it has no tasks at all: no replicas are asked for, or no node fits its constraints"
    fix = f"docker service ps --no-trunc {service}"
    if not newest:
        fix += f"; docker service scale {service}=N"
    return Trouble("no-tasks", f"service {service} has no running task; {why}", fix)


def no_such_service(service: str, problem: str, names: Sequence[str] | None) -> Trouble:
    """What to say of a service that is not there.

    Args:
        problem: the sentence that says so.
        names: all that are; None when they cannot be listed.
    """
    fix = "docker service ls, then set discovery.services or CHORUS_SERVICE_NAME to the whole name, STACK_SERVICE"
    if names is None:
        return Trouble("no-such-service", problem, fix)
    if not names:
        return Trouble("no-such-service", f"{problem}; there is none at all", "docker stack deploy the agents' stack")
    if near := _near(service, names):
        problem += f"; did you mean {' or '.join(near)}?"
        fix = f"set discovery.services or CHORUS_SERVICE_NAME to {near[0]}"
    else:
        problem += f"; there are {_listed(names)}"
    return Trouble("no-such-service", problem, fix)


def _chosen(task: Task, rules: Rules) -> Address | None:
    """The address to dial: of the named network, else the first in reach, never of ingress unless it is named."""
    if rules.network:
        named = [ip for each in task.attachments if _is_named(each, rules.network) for ip in each.addresses]
        return next((ip for ip in named if _in_reach(ip, rules.own)), named[0] if named else None)
    addresses = [ip for each in task.attachments if not each.ingress for ip in each.addresses]
    return next((ip for ip in addresses if _in_reach(ip, rules.own)), None)


def _out_of_reach(service: str, live: Sequence[Task], missed: Sequence[Task], rules: Rules) -> Iterator[Trouble]:
    count = f"{len(missed)} of {len(live)} running tasks of {service}"
    networks = _networks(missed)
    theirs = _listed(networks) if networks else "no network at all"
    own = _listed([str(each) for each in rules.own]) if rules.own else "none"
    if rules.network and missed:
        if len(missed) == len(live):
            fix = "leave discovery.docker_network empty, or set it to the name of one of those"
            if near := _near(rules.network, [each.network for task in missed for each in task.attachments]):
                fix = f"set discovery.docker_network to {near[0]}, or leave it empty"
        else:
            fix = f"docker service update --network-add {rules.network} {service}"
        yield Trouble(
            "no-such-network", f"{count} have no address in the network {rules.network!r}; they are in {theirs}", fix
        )
    elif missed:
        usable = [each for task in missed for each in task.attachments if each.addresses and not each.ingress]
        fix = f"docker service update --network-add NETWORK {service}, with an overlay network that this node is in"
        if usable:
            name = usable[0].network
            fix = (
                f"docker service update --network-add {name} SERVICE, with the service that this node runs in; or set "
                f"discovery.docker_network={name} where this node reaches it by another way"
            )
        yield Trouble(
            "no-network-in-reach",
            f"{count} have addresses only where this node has none: they are in {theirs}, this node in {own}",
            fix,
        )
    if rules.network:
        yield from _named_but_closed(service, live, rules, own)


def _named_but_closed(service: str, live: Sequence[Task], rules: Rules, own: str) -> Iterator[Trouble]:
    """An overlay network is reached from inside only: its places are kept, as the operator named it, with a warning."""
    overlays = [
        each
        for task in live
        for each in task.attachments
        if _is_named(each, rules.network) and each.driver == "overlay" and each.addresses
    ]
    if overlays and not any(_in_reach(ip, rules.own) for each in overlays for ip in each.addresses):
        yield Trouble(
            "no-network-in-reach",
            f"the tasks of {service} are looked for in the overlay network {overlays[0]}, and this node is in {own}",
            f"docker service update --network-add {overlays[0].network} SERVICE, with the service that this node runs "
            "in; or leave discovery.docker_network empty",
        )


def _agent(task: Task, address: Address, rules: Rules) -> FoundAgent:
    host = f"[{address}]" if address.version == 6 else str(address)
    return FoundAgent(
        id=task.id[:_AGENT_ID_CHARS],
        name=f"CHORUS-Task-{task.slot}",
        endpoint=f"http://{host}:{rules.agent_port}",
        p2p_addr=f"{host}:{rules.p2p_port}",
        cluster_id=rules.cluster_id,
    )


def _attachments(raw: object) -> Iterator[Attachment]:
    for each in _items(raw):
        attachment = _mapping(each)
        network = _mapping(attachment.get("Network"))
        spec = _mapping(network.get("Spec"))
        driver = _mapping(network.get("DriverState")) or _mapping(spec.get("DriverConfiguration"))
        name = _text(spec.get("Name"))
        addresses = dict(_addresses(attachment.get("Addresses")))
        yield Attachment(
            network=name,
            network_id=_text(network.get("ID")),
            driver=_text(driver.get("Name")),
            ingress=spec.get("Ingress") is True or name == "ingress",
            addresses=tuple(addresses.values()),
            cidrs=tuple(addresses),
        )


def _addresses(raw: object) -> Iterator[tuple[str, Address]]:
    """Those that can be dialled, each with how it was written."""
    for text in _items(raw):
        if not isinstance(text, str) or len(text) > 64 or "%" in text:
            continue
        try:
            ip = ip_address(text.partition("/")[0])
        except ValueError:
            continue
        if not (ip.is_unspecified or ip.is_multicast or ip.is_loopback or ip.is_link_local):
            yield text, ip


def _subnet(cidr: str) -> str:
    try:
        return str(ip_interface(cidr).network)
    except ValueError:
        return clean(cidr)


def _in_reach(ip: Address, own: Sequence[Network]) -> bool:
    return any(ip in network for network in own if network.version == ip.version)


def _is_named(attachment: Attachment, name: str) -> bool:
    return name in (attachment.network, attachment.network_id)


def _networks(tasks: Sequence[Task]) -> list[str]:
    return list(dict.fromkeys(str(each) for task in tasks for each in task.attachments))


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Known names that the writer may have meant: with another stack's prefix or none, in another case, misspelt."""
    folded = name.casefold()
    names = list(dict.fromkeys(each for each in known if each))
    ends = [each for each in names if each.casefold().endswith(f"_{folded}") or folded.endswith(f"_{each.casefold()}")]
    by_fold = {each.casefold(): each for each in names}
    alike = [by_fold[each] for each in get_close_matches(folded, by_fold, n=3, cutoff=0.6)]
    return list(dict.fromkeys([*ends, *alike]))[:3]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= 64 and value.isascii() and value.isalnum()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _text(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""
