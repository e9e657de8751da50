"""Who dialled this node and was refused, because it is not of our private network, or of one at all."""

from __future__ import annotations

from collections.abc import Mapping

MAX_STRANGERS = 64
"""Addresses kept; the one that was heard of longest ago is forgotten first."""


class Strangers:
    """Refused connections by IP address, the latest last.

    Attributes:
        refused: how many there were, those of forgotten addresses included.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._by_ip: dict[str, int] = {}

    def came(self, ip: str) -> None:
        self.refused += 1
        count = self._by_ip.pop(ip, 0)
        if len(self._by_ip) >= MAX_STRANGERS:
            del self._by_ip[next(iter(self._by_ip))]
        self._by_ip[ip] = count + 1

    def by_ip(self) -> Mapping[str, int]:
        return dict(self._by_ip)
