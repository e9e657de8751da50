"""How a kubo node is kept to itself, in tests and benchmarks; runs in kubo's environment, on the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Any

EVERYWHERE = IPv4Network("0.0.0.0/0")


def confined(
    config: dict[str, Any], address: str, reachable: Sequence[IPv4Network], *, mdns: bool = False
) -> dict[str, Any]:
    """The configuration `ipfs init` wrote, changed so that the node meets nobody whom it is not told of.

    Its DHT and the LAN twin run whatever `Routing.Type` says; without bootstrap peers they know nobody, and what
    `Swarm.AddrFilters` names is refused in both directions. What asks the network by itself is off.

    Args:
        address: the IPv4 address that it listens on, any TCP port.
        reachable: what it may dial and be dialled from.
        mdns: announce itself by multicast DNS, on every interface that it sees, and dial whom it finds there.
    """
    refused = [EVERYWHERE]
    for network in reachable:
        refused = [
            part for each in refused for part in (each.address_exclude(network) if network.subnet_of(each) else (each,))
        ]
    config["Bootstrap"] = []
    config["Addresses"].update(
        {"Swarm": [f"/ip4/{address}/tcp/0"], "API": [], "Gateway": [], "Announce": [], "AppendAnnounce": []}
    )
    config["Discovery"]["MDNS"]["Enabled"] = mdns
    config["Routing"]["Type"] = "none"
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Reprovider"] = {"Interval": "0"}
    config["Pubsub"] = {"Enabled": True, "Router": "gossipsub"}
    config["Swarm"].update(
        {
            "AddrFilters": [f"/ip4/{net.network_address}/ipcidr/{net.prefixlen}" for net in refused]
            + ["/ip6/::/ipcidr/0"],
            "DisableNatPortMap": True,
            "EnableHolePunching": False,
            "RelayClient": {"Enabled": False},
            "RelayService": {"Enabled": False},
            "Transports": {
                "Network": {"TCP": True, "QUIC": False, "WebTransport": False, "Websocket": False, "Relay": False},
                "Security": {},
                "Multiplexers": {},
            },
        }
    )
    return config
