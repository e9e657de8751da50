"""One round trip to a member, whether there is a link with it or not."""

from __future__ import annotations

import trio

from p2pnode.core.peerid import PeerId
from p2pnode.errors import InvalidRequest, Unavailable
from p2pnode.node.members import Members
from p2pnode.ports import Host, JsonObject

PROBE_SECONDS = 5.0


async def ping(host: Host, members: Members, peer: str) -> JsonObject:
    """One round trip over a link, or by a handshake at the addresses of a member without one: `ports.Sidecar.ping`."""
    known = PeerId(peer)
    member = members.get(known)
    linked = known in host.links()
    if (member is None and not linked) or known == host.peer_id:
        raise InvalidRequest(f"{peer} is nobody this node can ping", hint="`p2pnode peers` lists who is there")
    if not linked and members.is_beyond(known):
        raise Unavailable(f"{peer} lives beyond a bridge and cannot be reached from here", reason="beyond")
    if linked:
        seconds = await host.ping(known)
    else:
        started = trio.current_time()
        addrs = member.record.addrs if member is not None else ()
        if not await host.probe(known, addrs, PROBE_SECONDS):
            raise Unavailable(f"{peer} does not answer at {', '.join(addrs) or 'any address'}", reason="probe")
        seconds = trio.current_time() - started
    name = member.record.name if member is not None else None
    return {"peer_id": peer, "name": name, "rtt_ms": round(seconds * 1000, 3), "linked": linked}
