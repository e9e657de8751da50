"""The sidecar: the node as its local API sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

JsonObject = dict[str, Any]
Readiness = Literal["delivering", "degraded", "not-ready"]


@dataclass(frozen=True, slots=True)
class Published:
    """What a publisher gets back once its message is kept.

    Args:
        id: the message id as text, `<peer id>-<seqno>`.
        seqno: the sequence number, in decimal.
        duplicate: True when the idempotency key had been seen; id and seqno are the first one's.
    """

    id: str
    seqno: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Followed:
    """One step of a followed topic: a message, or news that some were lost to this follower.

    Args:
        document: the message document; empty when messages were lost.
        lost: how many fell out of the bounded history before this follower read them.
        replaced: another stream of the same subscription took over; the last step of this one.
    """

    document: JsonObject = field(default_factory=dict)
    lost: int = 0
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Can this node deliver?

    Args:
        readiness: `delivering`, `degraded` (works, but not as configured), `not-ready`.
        reasons: one sentence each, with what to do; empty when delivering.
    """

    readiness: Readiness
    reasons: tuple[str, ...] = ()


class Sidecar(Protocol):
    """The node as its local API sees it. Documents are as the interface reference gives them."""

    def node(self) -> JsonObject:
        """This node: the member document and `multiaddrs`, `api`, `health`, `uptime_seconds`."""

    def peers(self) -> list[JsonObject]:
        """Member documents, this node's own included (`"self": true`), ordered by role, name, peer id."""

    def topics(self) -> list[JsonObject]:
        """`topic`, `subscribed`, `peers`, `mesh`, `messages` (kept here), `received`, `published`; by name."""

    def health(self) -> Health: ...

    async def publish(
        self, topic: str, body: bytes, *, content_type: str, headers: Mapping[str, str], idempotency_key: str | None
    ) -> Published:
        """Check, sign, keep and send.

        Raises:
            InvalidRequest: topic, payload or headers are wrong; `faults` names each field.
            PayloadTooLarge: over the payload limit.
            TooBusy: 429, with `retry_after_seconds`.
            Unavailable: 503, with a reason; nothing was sent.
        """

    async def messages(self, topic: str, *, after: str | None, limit: int) -> list[JsonObject]:
        """Message documents in order of arrival here, after the message with id `after` (None: from the start).

        Raises:
            InvalidRequest: `after` is no message id, or not (or no longer) kept here; or the topic name is wrong.
        """

    def follow(self, topic: str, *, start: str) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        """Follow a topic: `start` is `start`, `now` or a message id. Subscribes to the topic if need be.

        The iterator ends when the node shuts down.

        Raises:
            InvalidRequest: as `messages`.
        """

    def subscribe(self, topic: str, name: str, *, start: str) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        """Read a durable subscription: all that was not acknowledged, then what comes.

        It is created at `start` (as in `follow`) when there is none of that name. An open stream of it ends with
        `replaced`. What is not acknowledged for long is sent again; at most 256 messages are sent ahead of that.

        Raises:
            InvalidRequest: as `messages`; or the name is no name, or that of a subscription to another topic.
            TooBusy: there are as many subscriptions as can be.
            EnvironmentFault: it could not be stored.
        """

    async def acknowledge(self, name: str, message_id: str) -> JsonObject:
        """Everything a subscription was sent up to a message was handled: `subscription`, `pending`.

        Raises:
            NotFound: no such subscription.
            InvalidRequest: no message id, or of none that is stored here and belongs to the subscription.
        """

    async def nack(self, name: str, message_id: str, reason: str) -> JsonObject:
        """A subscription's reader gives one message up; answers and raises as `acknowledge`.

        Raises:
            EnvironmentFault: the dead letter could not be stored.
        """

    async def subscriptions(self) -> list[JsonObject]:
        """`name`, `topics`, `cursor`, `pending`, `state`; by name."""

    async def unsubscribe(self, name: str) -> None:
        """Forget a subscription, its place and its dead letters.

        Raises:
            NotFound: no such subscription.
            InvalidRequest: it is that of the configured webhook.
            EnvironmentFault: it could not be stored.
        """

    async def deliveries(self) -> list[JsonObject]:
        """What waits for the agent, by subscription: `subscription`, `topics`, `cursor`, `pending`,
        `oldest_pending_seconds`, `in_flight`, `failed` (dead letters), `delivered`, `state`, `retry_in_seconds`,
        `last_error`, `last_error_at`. `state`: `delivering`, `waiting` (the webhook does not take messages just now),
        `connected` (its stream is open), `idle` (it is not), `off` (the webhook is not configured)."""

    def dead_letters(self, subscription: str | None, limit: int) -> list[JsonObject]:
        """What was given up, the oldest first: `subscription`, `id`, `topic`, `attempts`, `error`, `at`, `retrying`.

        Raises:
            NotFound: no such subscription.
        """

    async def retry_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        """Try dead letters again: one or all, of one subscription or of all; how many.

        Raises:
            NotFound: no such subscription, or no such dead letter.
            InvalidRequest: no message id, or the webhook whose it is is off.
        """

    async def drop_deliveries(self, subscription: str | None, message_id: str | None) -> int:
        """Forget dead letters; as `retry_deliveries`. One that is on its way to the agent just now stays.

        Raises:
            EnvironmentFault: it could not be stored.
        """

    async def mesh(self) -> JsonObject:
        """Who is in whose mesh, over the whole fleet: `nodes` (`peer_id`, `name`, `role`, `links`, `topics`: peer ids
        by topic) of every node that answered, this one included, and `missing` (`peer_id`, `name`): live members that
        did not. Both ordered as `peers`; asks the fleet, which takes three seconds at most.

        Raises:
            Unavailable: 503, with a reason.
        """

    async def doctor(self) -> JsonObject:
        """Why this node is alone or degraded: `status` (`healthy`, `degraded`, `failed`), `exit_code` (0, 1, 2),
        `summary` (one line of what there is of good), `findings` (`code`, `severity`, `title`, `evidence`: lines,
        `fix`; the worst first), `checked` (names of the checks made), `at`. Takes five seconds at most.

        Raises:
            Unavailable: 503, with a reason.
        """

    def discovery(self) -> JsonObject:
        """Where peers are looked for: `mode`, and `sources`, each with `method`, `subject`, `wanted` (asked for by
        name), `state` (`working`, `failing`), `places` (`addr`, `peer_id`, `name`, `agent_id`, `endpoint`, `state`,
        `error`) and `troubles` (`code`, `problem`, `fix`). A place is `linked`, a `member` without a link, `unreached`
        (`error` says why), `unknown` (not tried yet) or `self`: this node; what nobody knows is null.
        """

    async def ping(self, peer: str) -> JsonObject:
        """One round trip: `peer_id`, `name`, `rtt_ms`, and `"linked": false` when a handshake stood in for a link.

        Args:
            peer: the peer id of one of `peers`, not of this node.

        Raises:
            InvalidRequest: nobody here knows that peer id.
            Unavailable: 503, with a reason: it does not answer.
        """

    def bootstrap_peers(self) -> list[str]:
        """Multiaddrs another node can join by: our own first."""

    async def create_council(self, document: Mapping[str, object], *, idempotency_key: str | None) -> JsonObject:
        """Announce a council; this node decides its claims. What is left out is filled in: `council_id`, `created_at`,
        `formation_deadline`. The council document, with the message id as `id`, and `"duplicate": true` when the key
        or the same `council_id` with the same content was used before.

        Raises:
            InvalidRequest: what is wrong with the opportunity, field by field.
            Conflict: reason `exists`: another council has that id.
            Forbidden: this node is none of `trust.orchestrators`.
            TooBusy, Unavailable, EnvironmentFault: as `publish`.
        """

    def councils(self, *, status: str | None) -> list[JsonObject]:
        """Council documents, the newest first: `council_id`, `project_name`, `repository`, `project_brief`,
        `ucxl_address`, `formation_deadline`, `created_at`, `metadata`, `status`, `message`, `term`, `n`, `owner`
        (peer id), `owner_name`, `updated_at`, `roles` (`role_name`, `required`, `required_skills`, `description`,
        `state`: `open`, `assigned` or `accepted`, `agent_id`, `agent_name`, `peer_id`, `name` (of the node), `term`,
        `n`, `claims`: how many want it), `missing` (core roles that are not accepted yet), `mine` (roles that this
        node's agent holds), `reports` (`peer_id`, `name`, `agent_id`, `role_name`, `status`, `message`, `at`).

        Args:
            status: only those; None for all.

        Raises:
            InvalidRequest: no such status.
        """

    def council(self, council_id: str) -> JsonObject:
        """One council document, with `claims` (`role_name`, `agent_id`, `agent_name`, `peer_id`, `name`,
        `capabilities`, `fit`, `running_roles`, `confidence`, `claimed_at`), those first that would get the role.

        Raises:
            NotFound: no such council here.
            InvalidRequest: no council id.
        """

    async def claim_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """Claim a role for this node's agent: `role_name`, optional `agent_id`, `agent_name`, `capabilities` (those of
        the agent when left out), `confidence`, `claimed_at`. `id`, `council_id`, `role_name`, `agent_id`.

        Raises:
            NotFound: no such council, or it has no such role.
            InvalidRequest: what is wrong with the claim, field by field.
            Conflict: reason `filled`: somebody holds it (`facts`: `agent_id`, `peer_id`, `term`, `n`); `ended`.
            TooBusy, Unavailable, EnvironmentFault: as `publish`.
        """

    async def release_role(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """Give back a role that this node's agent holds, or take back a claim: `role_name`, optional `agent_id`,
        `reason`. Answers as `claim_role`.

        Raises:
            NotFound: no such council or role, or neither held nor claimed by the agent.
            InvalidRequest, TooBusy, Unavailable, EnvironmentFault: as `claim_role`.
        """

    async def report_status(self, council_id: str, document: Mapping[str, object]) -> JsonObject:
        """Say where a council stands: `status`, optional `message`, `role_name`, `agent_id`. An orchestrator's word
        ends the council (`completed`, `failed`, `cancelled`); who holds a role reports on it, with its fencing number
        `term` and `n` if it gives them. `id`, `council_id`, `status`.

        Raises:
            NotFound, InvalidRequest: as `claim_role`.
            Conflict: reason `ended`, `transition`: not from where it stands; `stale`: the fencing number is not, or no
                longer, that of a role the agent holds.
            Forbidden: neither an orchestrator nor a holder of a role there.
            TooBusy, Unavailable, EnvironmentFault: as `publish`.
        """

    def watch_councils(self, council_id: str | None) -> AbstractAsyncContextManager[AsyncIterator[JsonObject]]:
        """Council documents as they change, beginning with those that are: of one council, or of all. A slow reader
        gets the newest state of each and not every step. Ends when the node shuts down.

        Raises:
            NotFound: no such council here.
        """

    def agent(self) -> JsonObject:
        """What is said of this node's agent: `agent_id`, `name`, `status`, `capabilities`, `model`, `endpoint`,
        `cluster_id`, `current_team`, `tasks_completed`, `p2p_addr`, `last_seen`, `peer_id`, `backbeat` (its last
        StatusClaim, or null)."""

    def agents(self, *, capability: str | None, model: str | None, status: str | None) -> list[JsonObject]:
        """The agents of live members, as `agent`; only those that match. By name, then peer id."""

    async def update_agent(self, changes: Mapping[str, object]) -> JsonObject:
        """Change what is said of this node's agent: `status`, `capabilities`, `model`, `endpoint`, `current_team`,
        `tasks_completed`; all members hear of it. The agent's document.

        Raises:
            InvalidRequest: unknown or wrong fields, each named; or more than a member record holds.
        """

    def carriers(self) -> JsonObject:
        """Which roads own messages take: `gossip`, `nats`, `http`, each with `use` (in force), `configured` (both
        `off`, `fallback` or `always`), `state` (`off`, `ready`, `active`: in use as a fallback just now, `trouble`:
        gossip that does not do by itself, `down`), `why` (one sentence for the last three, else empty) and `messages`
        (own messages that took it); `rollback` (`nats`, `http` or null), `canary_percent`, `old_road` (`nats` or
        `http`: what councils outside the canary share take), `waiting` (own messages that are not where they should
        be), `degraded` (bool), `broker` (null without NATS; else `connected`, `server`, `jetstream`, `code`,
        `problem`, `fix`), `changed_at` (when it was set live; null when it stands as at the start), `listen` (where
        HTTP is taken from others; null)."""

    async def set_carriers(self, changes: Mapping[str, object]) -> JsonObject:
        """Change roads until the next start: `gossip`, `nats`, `http`, `canary_percent`, `rollback` (`nats`, `http`, or
        null: none). The document of `carriers`.

        Raises:
            InvalidRequest: unknown or wrong fields, each named; or no road would be left.
        """

    def bridge(self) -> JsonObject:
        """What a bridge does: `import_key` (peer id), `shared_key` (it was configured), `broker` (as in `carriers`),
        `importing` (`all`, `signed`: another bridge imports what plain clients publish), `exports` (`topic`, `subject`,
        `pending`, `published`, `skipped`, `refused`, `failed`), `imports` (`subject`, `durable`, `pending`,
        `unacknowledged`, `redelivered`, `signed`, `plain`, `duplicates`, `refused`), `lag_seconds` (of the oldest
        message that waits for NATS), `bridges` (`peer_id`, `name`, `beyond`: bool, `heard_seconds_ago`), `beyond`
        (members beyond other bridges), `last_refused` (`subject`, `reason`, `detail`, `at`; the newest first, at most
        20).

        Raises:
            NotFound: this node is no bridge.
        """

    def metrics(self) -> Mapping[str, float]:
        """Counters and gauges by Prometheus name, labels in braces: `p2pnode_links`,
        `p2pnode_messages_total{topic="…",verdict="…"}`. Names ending in `_total` are counters."""
