"""The topics a bridge's node takes part in: those that have a subject, and each `hmmm.*` that a linked node reads."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

import trio

from p2pnode.core.message import parse_topic
from p2pnode.core.subjects import Subjects
from p2pnode.errors import EnvironmentFault, InvalidMessage
from p2pnode.logs import Throttled

log = logging.getLogger(__name__)

THREADS = "hmmm."
MAX_THREADS = 200
"""Topics `hmmm.*` in the life of a process: the router takes part in 256 topics. Others' messages are refused by then,
with a word about it."""

LOOK_SECONDS = 1.0


class Topics:
    """
    Args:
        open_topic: makes room for a topic and subscribes to it; raises TooBusy at the node's bound.
        heard: topics that connected peers are subscribed to.
    """

    def __init__(
        self, subjects: Subjects, open_topic: Callable[[str], Awaitable[None]], heard: Callable[[], Collection[str]]
    ) -> None:
        self._subjects = subjects
        self._open_topic = open_topic
        self._heard = heard
        self._open: set[str] = set()
        self._threads = 0
        self._failures = Throttled(log)

    async def ensure(self, topic: str) -> bool:
        """Open a topic unless it is; False: there is no room for it."""
        if topic in self._open:
            return True
        is_thread = topic.startswith(THREADS)
        if is_thread and self._threads >= MAX_THREADS:
            self._failures.warning("no more hmmm topics are bridged", {"topic": topic, "bound": MAX_THREADS})
            return False
        try:
            await self._open_topic(topic)
        except EnvironmentFault as error:
            self._failures.warning("a topic cannot be bridged", {"topic": topic, "reason": error.detail})
            return False
        if topic not in self._open:
            self._open.add(topic)
            self._threads += is_thread
        return True

    async def run(self) -> None:
        """Open what has a subject, and look each second for what peers read; until cancelled."""
        while True:
            for topic in (*self._subjects.topics(), *sorted(self._new_threads())):
                await self.ensure(topic)
            await trio.sleep(LOOK_SECONDS)

    def _new_threads(self) -> set[str]:
        room = MAX_THREADS - self._threads
        if room <= 0:
            return set()
        found = {each for each in self._heard() if each.startswith(THREADS) and each not in self._open}
        return {each for each in found if self._subjects.carries(each) and _is_topic(each)}


def _is_topic(name: str) -> bool:
    try:
        parse_topic(name)
    except InvalidMessage:
        return False
    return True
