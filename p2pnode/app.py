"""The composition root: settings to adapters to a running node, and the agent under it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import trio

from p2pnode import __version__
from p2pnode.adapters import http_carrier, other_roads, policy_of
from p2pnode.api.server import open_api
from p2pnode.config import Loaded, Settings
from p2pnode.config.checks import check_network_key
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.params_score import ScoreParams
from p2pnode.core.links import LinkSettings
from p2pnode.core.membership.record import MemberRecord
from p2pnode.core.peerid import PeerId
from p2pnode.discovery.choosing import choose_sources, plain_addresses
from p2pnode.discovery.mdns import network_fingerprint
from p2pnode.errors import EnvironmentFault, Fault, InvalidConfig, InvalidMessage, P2PNodeError
from p2pnode.host.meshsub import open_meshsub
from p2pnode.host.opening import open_host
from p2pnode.identity import Identity, open_identity, verifier_for
from p2pnode.local.address import ApiListener, UnixAddress, parse_api_address
from p2pnode.logs import configure_logging
from p2pnode.node.councils import CouncilSettings
from p2pnode.node.deliveries import WebhookSettings
from p2pnode.node.finder import Chosen
from p2pnode.node.gossip import RoutedGossip
from p2pnode.node.settings import Keys, NodeSettings, Stores
from p2pnode.node.sidecar import Node
from p2pnode.node.storing import Durability, Retention
from p2pnode.paths import register, runtime_dir
from p2pnode.store.ceiling import SeqnoFile
from p2pnode.store.database import DATABASE_NAME
from p2pnode.store.lock import locked_data_dir
from p2pnode.store.messages import open_messages
from p2pnode.store.peers import PeersFile
from p2pnode.wire.members import check_room
from p2pnode.wire.payload import format_time
from p2pnode.wire.pubsub import message_verify

log = logging.getLogger(__name__)

LEAVE_SECONDS = 4.5
"""From the decision to leave to the end of the process, at the latest."""

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LEAVING = (signal.SIGTERM, signal.SIGINT)


def run_sidecar(loaded: Loaded, agent_command: Sequence[str] | None = None, *, parent: int | None = None) -> int:
    """Run one sidecar until it is told to leave; the exit status is the agent's if there is one.

    Args:
        loaded: checked settings.
        agent_command: started when the sidecar is ready, stopped before it leaves.
        parent: a pipe's read end; its end of file means that whoever started us is gone, and we leave.

    Raises:
        P2PNodeError: it could not start; nothing is left behind.
    """
    settings = loaded.settings
    configure_logging(settings.log.level, settings.log.format, sys.stderr)
    status = _Sidecar(loaded, agent_command, parent)
    with _unwrapped():
        trio.run(status.run)
    return status.exit_code


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Our own error out of the exception groups that nurseries make of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(P2PNodeError)
        if ours is None or others is not None:
            raise
        first: BaseException = ours
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


class _Sidecar:
    def __init__(self, loaded: Loaded, agent_command: Sequence[str] | None, parent: int | None) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._agent_command = list(agent_command) if agent_command else None
        self._parent = parent
        self._leave = trio.Event()
        self._agent: trio.Process | None = None
        # While the agent is being started it may already run, and a signal waits until we can pass it on.
        self._agent_settled = trio.Event()
        if agent_command is None:
            self._agent_settled.set()
        self.exit_code = 0

    async def run(self) -> None:
        # Caught from the first moment: a signal during the start means leaving, not dying half-way.
        with trio.open_signal_receiver(*(_FORWARDED if self._agent_command else _LEAVING)) as signals:
            with locked_data_dir(self._settings.node.data_dir) as data_dir:
                identity = open_identity(data_dir)
                _warn_of_trust(self._settings)
                async with self._open_node(identity, data_dir) as (node, api, name):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch_signals, signals)
                        if self._parent is not None:
                            nursery.start_soon(self._watch_parent, self._parent)
                        nursery.start_soon(node.run)
                        nursery.start_soon(_yield_to_twin, node)
                        log.info(
                            "ready",
                            extra={
                                "node": name,
                                "role": self._settings.node.role,
                                "peer_id": identity.peer_id,
                                "api": [str(address) for address in api],
                                "multiaddrs": node.node()["multiaddrs"],
                            },
                        )
                        if self._agent_command is not None:
                            nursery.start_soon(self._run_agent, self._agent_command, api[0])
                        await self._leave.wait()
                        _end_at_the_latest(LEAVE_SECONDS, lambda: self.exit_code)
                        log.info("leaving")
                        await node.drain()
                        nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _open_node(
        self, identity: Identity, data_dir: Path
    ) -> AsyncIterator[tuple[Node, tuple[ApiListener, ...], str]]:
        settings = self._settings
        network, gossip_settings = settings.network, settings.gossip
        name = settings.node.name or f"{settings.node.role}-{identity.peer_id[-6:]}"
        listeners = [parse_api_address(text) for text in settings.api.listen] or [
            UnixAddress(str(runtime_dir() / f"{name}.sock"))
        ]
        token = _read_token(settings.api.token_file)
        addresses: tuple[ApiListener, ...] = ()
        network_key = _network_key(settings)
        verify_message = message_verify(verifier_for)
        async with (
            open_messages(data_dir / DATABASE_NAME) as store,
            open_host(
                identity,
                network.listen,
                announce=network.announce,
                announce_cidr=network.announce_cidr,
                stack=settings.transport.stack,
                network_key=network_key,
            ) as host,
        ):
            sources = choose_sources(
                settings,
                docker_is_configured=self._loaded.sources["discovery.docker_host"] != "default",
                peer_id=identity.peer_id,
                addrs=host.addrs,
                fingerprint=network_fingerprint(network_key) if network_key else "",
                rng=Random(os.urandom(16)),
            )
            node = Node(
                NodeSettings(
                    record=_own_record(settings, identity, name),
                    topics=gossip_settings.topics,
                    bootstrap=plain_addresses(network.bootstrap),
                    sources=[Chosen(source, wanted) for source, wanted in sources],
                    mode=settings.discovery.mode,
                    links=LinkSettings(
                        target=network.target_links,
                        most=network.max_links,
                        own=min(LinkSettings().own, network.max_links),
                        most_backoff_seconds=network.dial_backoff_max_seconds,
                    ),
                    publish_per_second=gossip_settings.publish_per_second,
                    publish_burst=gossip_settings.publish_burst,
                    retention=Retention(
                        settings.messages.keep_count, settings.messages.keep_bytes, settings.messages.keep_seconds
                    ),
                    durability=Durability(
                        own=settings.messages.own_durability == "full",
                        received=settings.messages.received_durability == "full",
                    ),
                    webhook=_webhook(settings),
                    councils=CouncilSettings(
                        settings.councils.takeover,
                        settings.councils.formation_seconds,
                        settings.agent.auto_claim,
                        frozenset(PeerId(each) for each in settings.trust.orchestrators),
                        frozenset(PeerId(each) for each in settings.trust.bridges),
                        frozenset(settings.trust.bridged_topics),
                    ),
                    carriers=policy_of(settings),
                    cluster=settings.agent.cluster_id,
                    subjects=settings.nats.subjects,
                    legacy=settings.legacy.endpoints,
                ),
                Keys(identity.peer_id_bytes, identity.sign, _verify_record, verify_message),
                host,
                Stores(
                    SeqnoFile(data_dir / "seqno"),
                    SeqnoFile(data_dir / "incarnation"),
                    PeersFile(data_dir / "peers.json"),
                    store,
                    data_dir,
                ),
                wall_ns=time.time_ns,
                rng=Random(os.urandom(16)),
                api_addresses=lambda: [str(address) for address in addresses],
                other_roads=other_roads(settings, data_dir, name, network_key),
            )
            async with open_meshsub(host, Random(os.urandom(16))) as streams, AsyncExitStack() as served:
                gossip = RoutedGossip(
                    identity.peer_id,
                    streams,
                    node,
                    verify_message,
                    _gossip_params(settings),
                    Random(os.urandom(16)),
                    fixed_degree=bool(gossip_settings.degree),
                )
                node.attach(gossip)
                await node.load()
                served.push_async_callback(_shielded, node.close)
                streams.report_to(gossip)
                host.report_to(streams)
                host.report_to(node)
                api = await served.enter_async_context(
                    open_api(node, listeners, token=token, allowed_hosts=settings.api.allowed_hosts)
                )
                addresses = api.addresses
                await served.enter_async_context(http_carrier(settings, node, network_key))
                with ExitStack() as stack:
                    stack.enter_context(
                        register(
                            name=name,
                            pid=os.getpid(),
                            api_addresses=[str(address) for address in addresses],
                            role=settings.node.role,
                            peer_id=identity.peer_id,
                        )
                    )
                    yield node, addresses, name

    async def _watch_signals(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            await self._agent_settled.wait()
            agent = self._agent
            if agent is None or agent.returncode is not None:
                if number in _LEAVING:
                    self._leave.set()
                continue
            # On a terminal the agent gets Ctrl-C by itself, being in the same process group.
            if not (number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()):
                agent.send_signal(signal.Signals(number))
            if number in _LEAVING:
                grace = trio.current_time() + self._settings.agent.stop_grace_seconds
                trio.lowlevel.spawn_system_task(self._kill_agent_after, agent, grace)

    async def _kill_agent_after(self, agent: trio.Process, deadline: float) -> None:
        await trio.sleep_until(deadline)
        if agent.returncode is None:
            log.warning("the agent did not stop in time and is killed", extra={"pid": agent.pid})
            agent.kill()

    async def _watch_parent(self, descriptor: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            if not os.read(descriptor, 64):
                self._leave.set()
                return

    async def _run_agent(self, command: Sequence[str], api: ApiListener) -> None:
        """The agent's life; the sidecar leaves after it, with its status."""
        try:
            self._agent = await trio.lowlevel.open_process(list(command), stdin=None, env=_agent_environment(api))
        except OSError as error:
            log.error("the agent cannot be started", extra={"command": command[0], "reason": error.strerror})
            # As a shell reports it.
            self.exit_code = 127 if error.errno == errno.ENOENT else 126
            self._leave.set()
            return
        finally:
            self._agent_settled.set()
        log.info("agent started", extra={"pid": self._agent.pid, "command": command[0]})
        status = await self._agent.wait()
        self.exit_code = 128 - status if status < 0 else status
        log.info("agent ended", extra={"pid": self._agent.pid, "status": self.exit_code})
        self._leave.set()


async def _shielded(close: Callable[[], Awaitable[None]]) -> None:
    with trio.CancelScope(shield=True):
        await close()


def _webhook(settings: Settings) -> WebhookSettings | None:
    agent = settings.agent
    if not agent.webhook:
        return None
    return WebhookSettings(
        agent.webhook,
        agent.webhook_topics or settings.gossip.topics,
        agent.webhook_timeout_seconds,
        agent.webhook_attempts,
    )


def _own_record(settings: Settings, identity: Identity, name: str) -> MemberRecord:
    """Who we are, for others to read.

    Raises:
        InvalidConfig: it would be larger than others accept.
    """
    agent = settings.agent
    record = MemberRecord(
        peer_id=identity.peer_id,
        incarnation=0,
        name=name,
        role=settings.node.role,
        status="online",
        addrs=(),
        agent_id=agent.id,
        capabilities=tuple(agent.capabilities),
        model=agent.model,
        endpoint=agent.endpoint,
        cluster_id=agent.cluster_id,
        version=__version__,
    )
    try:
        check_room(record, identity.sign)
    except InvalidMessage as error:
        raise InvalidConfig(
            "the member record is larger than other nodes accept",
            [Fault("agent", f"{error.detail}; shorten agent.capabilities, agent.model or agent.endpoint")],
        ) from error
    return record


def _gossip_params(settings: Settings) -> Params:
    """The router's parameters; a configured degree replaces the one that follows the fleet's size."""
    heartbeat, degree = settings.gossip.heartbeat_seconds, settings.gossip.degree
    # Scores decay with the heartbeat, so the decay's period is one.
    params = Params(heartbeat_seconds=heartbeat, score=ScoreParams(decay_seconds=heartbeat)).for_fleet(1)
    if not degree:
        return params
    low = max(degree - 1, 1)
    return replace(
        params,
        d=degree,
        d_lo=low,
        d_hi=2 * degree,
        d_score=min(params.d_score, degree),
        d_out=min(params.d_out, low - 1, degree // 2),
        d_lazy=degree,
        prune_peers=max(params.prune_peers, 2 * degree),
    )


def _verify_record(peer: bytes, key: bytes, data: bytes, signature: bytes) -> bool:
    try:
        return verifier_for(peer, key)(data, signature)
    except InvalidMessage:
        return False


def _agent_environment(api: ApiListener) -> dict[str, str]:
    """Ours, with where the agent finds us, and without the network key, which is none of its business."""
    return {**{k: v for k, v in os.environ.items() if k != "P2PNODE_NETWORK_KEY"}, "P2PNODE_API": str(api)}


async def _yield_to_twin(node: Node) -> None:
    """Stop when an older live process has our identity.

    Raises:
        EnvironmentFault: it does; no goodbye is said, which would be taken for its.
    """
    await node.presence.twin_met.wait()
    twin = node.presence.twin
    assert twin is not None
    where = ", ".join(twin.addrs) or "an unknown address"
    raise EnvironmentFault(
        f"another live process has this node's identity and is older: {twin.name!r} at {where}, started "
        f"{format_time(twin.started_at_ns)}",
        hint="each node needs a data directory of its own (--data-dir): a copied one holds the same key",
    )


def _warn_of_trust(settings: Settings) -> None:
    if not settings.trust.orchestrators:
        log.warning(
            "trust.orchestrators is empty: opportunities, assignments and statuses of any member count",
            extra={"key": "trust.orchestrators"},
        )


def _network_key(settings: Settings) -> bytes:
    network = settings.network
    if network.key_file is None:
        return bytes.fromhex(network.key)
    try:
        key = bytes.fromhex(check_network_key(network.key_file.read_text("utf-8").strip()))
        if not key:
            raise ValueError("is empty")  # which must not mean a public network
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"cannot read the network key file {network.key_file}: {error}") from error
    except ValueError as error:
        raise InvalidConfig(
            "the network key cannot be used", [Fault("network.key_file", f"{network.key_file}: {error}")]
        ) from error
    return key


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"cannot read the API token file {path}: {error}") from error
    if not token:
        raise EnvironmentFault(f"the API token file {path} is empty", hint="put a long random word into it")
    return token


def _end_at_the_latest(seconds: float, exit_code: object) -> None:
    """The library can hang at closing behind a peer that does not read; the process must not."""
    timer = threading.Timer(seconds, lambda: os._exit(exit_code() if callable(exit_code) else 0))
    timer.daemon = True
    timer.start()
