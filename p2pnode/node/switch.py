"""What the API shows of the roads, and what an operator changes of them while they are in use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from p2pnode.core.routing import OTHERS, ROADS, Policy, Road, Use
from p2pnode.errors import Fault, InvalidRequest
from p2pnode.node.posting import Poster
from p2pnode.node.roads import Roads
from p2pnode.ports import JsonObject
from p2pnode.ports.roads import Broker, BrokerState
from p2pnode.wire.payload import format_time

log = logging.getLogger(__name__)

USES: Final = ("off", "fallback", "always")


class Switch:
    """
    Args:
        configured: the policy of the start.
        broker: None without NATS.
        poster: None where nothing is posted.
        listen: where HTTP is taken from others; None: nowhere.
        wall_ns: the wall clock.
    """

    def __init__(
        self,
        roads: Roads,
        configured: Policy,
        broker: Broker | None,
        poster: Poster | None,
        listen: Callable[[], str | None],
        wall_ns: Callable[[], int],
    ) -> None:
        self._roads = roads
        self._configured = configured
        self._broker = broker
        self._poster = poster
        self._listen = listen
        self._wall_ns = wall_ns
        self._changed_at_ns = 0

    # -- how the roads stand -----------------------------------------------------------

    def other_roads(self) -> Sequence[Road]:
        """By which roads own messages go out and others' come in although no peer is connected; empty: by none."""
        nats = self._use("nats") != "off" and self._state().connected
        http = self._use("http") != "off" and self._listen() is not None and self._has_sidecars()
        carrying: dict[Road, bool] = {"nats": nats, "http": http and not (nats and self._use("http") == "fallback")}
        return [road for road in OTHERS if carrying[road]]

    def reasons(self) -> list[str]:
        """Why the roads do less than configured, with what to do; empty when all is well."""
        found = []
        if self._is_in_trouble():
            helpers = [road.upper() for road in self._helpers()]
            what = f"messages go by {' and '.join(helpers)} too" if helpers else "no other road is there to help"
            found.append(f"gossip is in trouble ({self._roads.trouble}): {what}")
        state = self._state()
        if self._broker is not None and self._use("nats") != "off" and state.code:
            found.append(f"{state.problem}; {state.fix}" if state.fix else state.problem)
        if self._use("gossip") == self._use("nats") == "off" and not self._is_up("http"):
            found.append("own messages can take no road: HTTP alone is on, and nobody takes it; see `p2pnode doctor`")
        return found

    def document(self) -> JsonObject:
        """`ports.Sidecar.carriers`."""
        policy = self._roads.policy
        return {
            **{road: self._road_document(road) for road in ROADS},
            "rollback": policy.rollback or None,
            "canary_percent": policy.canary_percent,
            "old_road": policy.old_road,
            "degraded": bool(self.reasons()),
            "broker": broker_document(self._state()) if self._broker is not None else None,
            "waiting": self._roads.waiting(),
            "changed_at": format_time(self._changed_at_ns) if self._changed_at_ns else None,
            "listen": self._listen(),
        }

    def _road_document(self, road: Road) -> JsonObject:
        use, why = self._use(road), ""
        state = "off" if use == "off" else "ready"
        if use != "off" and not self._is_up(road):
            nobody = "nobody tells where it takes messages by HTTP"
            state, why = "down", (self._state().problem or "not connected yet") if road == "nats" else nobody
        elif road == "gossip" and self._is_in_trouble():
            state, why = "trouble", self._roads.trouble
        elif use == "fallback" and self._is_in_trouble() and road in self._helpers():
            state, why = "active", f"gossip is in trouble: {self._roads.trouble}"
        configured = {"gossip": self._configured.gossip, "nats": self._configured.nats, "http": self._configured.http}
        return {
            "use": use,
            "configured": configured[road],
            "state": state,
            "why": why,
            "messages": self._roads.took[road],
        }

    def _is_in_trouble(self) -> bool:
        return self._use("gossip") != "off" and bool(self._roads.trouble)

    def _helpers(self) -> list[Road]:
        """Roads that carry what gossip does not; HTTP only what NATS cannot, unless it carries everything."""
        up: list[Road] = [road for road in OTHERS if self._use(road) != "off" and self._is_up(road)]
        return ["nats"] if up == ["nats", "http"] and self._use("http") == "fallback" else up

    def _use(self, road: Road) -> Use:
        return self._roads.policy.plan(None).use(road)

    def _state(self) -> BrokerState:
        return self._broker.state() if self._broker is not None else BrokerState()

    def _has_sidecars(self) -> bool:
        return self._poster is not None and self._poster.has_sidecars()

    def _is_up(self, road: Road) -> bool:
        if road == "nats":
            return self._state().connected
        return road == "gossip" or (self._poster is not None and self._poster.has_targets())

    # -- changing them -----------------------------------------------------------------

    def set(self, changes: Mapping[str, object]) -> JsonObject:
        """`ports.Sidecar.set_carriers`.

        Raises:
            InvalidRequest: what is wrong, field by field.
        """
        faults: list[Fault] = []
        wanted: dict[str, Any] = {}
        for name, value in changes.items():
            if name in ROADS:
                if value not in USES:
                    faults.append(Fault(name, f"must be one of {', '.join(USES)}, not {value!r:.60}"))
                wanted[name] = value
            elif name == "canary_percent":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
                    faults.append(Fault(name, f"must be a number from 0 to 100, not {value!r:.60}"))
                else:
                    wanted[name] = float(value)
            elif name == "rollback":
                if value not in (None, "", "nats", "http"):
                    faults.append(Fault(name, f"must be nats, http or null, not {value!r:.60}"))
                wanted[name] = value or ""
            else:
                faults.append(
                    Fault(name, f"there is no such field; there are {', '.join(ROADS)}, canary_percent, rollback")
                )
        if not changes:
            faults.append(Fault("body", "names nothing to change"))
        before = self._roads.policy
        if not faults:
            faults = self._contradictions(replace(before, **wanted))
        if faults:
            raise InvalidRequest("the carriers were not changed", faults)
        after = replace(before, **wanted)
        self._roads.change(after)
        self._changed_at_ns = self._wall_ns()
        log.warning("carriers changed", extra={"from": _words(before), "to": _words(after)})
        return self.document()

    def _contradictions(self, policy: Policy) -> list[Fault]:
        faults = []
        no_server = "there is no NATS server to use: set nats.url (NATS_URL) and start the sidecar again"
        no_http = "HTTP was off at the start of this sidecar: set carriers.http and start it again"
        if policy.rollback == "nats" and self._broker is None:
            faults.append(Fault("rollback", no_server))
        if policy.nats == "always" and self._broker is None:
            faults.append(Fault("nats", no_server))
        if policy.rollback == "http" and self._poster is None:
            faults.append(Fault("rollback", no_http))
        if policy.http == "always" and self._poster is None:
            faults.append(Fault("http", no_http))
        has_nats = policy.nats != "off" and self._broker is not None
        has_http = policy.http != "off" and self._poster is not None
        if not policy.rollback and policy.gossip == "off" and not has_nats and not has_http:
            faults.append(Fault("gossip", "no road would be left; leave one on"))
        return faults

    def metrics(self) -> Mapping[str, float]:
        roads, policy = self._roads, self._roads.policy
        return {
            **{f'p2pnode_road_messages_total{{road="{road}"}}': float(roads.took[road]) for road in ROADS},
            **{
                f'p2pnode_road_{what}_total{{{"reason" if what == "in" else "road"}="{which}"}}': float(count)
                for (what, which), count in roads.counted.items()
            },
            "p2pnode_road_waiting": float(roads.waiting()),
            "p2pnode_road_trouble": float(bool(roads.trouble)),
            "p2pnode_canary_percent": policy.canary_percent,
            "p2pnode_rollback": float(bool(policy.rollback)),
            **(self._poster.metrics() if self._poster is not None else {}),
        }


def broker_document(state: BrokerState) -> JsonObject:
    return {
        "connected": state.connected,
        "server": state.server,
        "jetstream": state.jetstream,
        "code": state.code,
        "problem": state.problem,
        "fix": state.fix,
    }


def _words(policy: Policy) -> str:
    roads = " ".join(f"{road}={getattr(policy, road)}" for road in ROADS)
    return f"{roads} canary={policy.canary_percent:g} rollback={policy.rollback or 'off'}"
