"""Order of delivery: of each origin and topic, a message is released to readers after the one that its `prev` names.

A message whose predecessor is not there waits for it, HOLD_SECONDS at most; then it goes ahead, and what it went ahead
of is released late when it comes. Numbers are of the origin's own making: nothing here believes that they are dense,
honest, or unique in what follows them.

Rules:
- `prev` 0 says nothing (a stock peer, the first message of an origin or after it lost its store): in order of arrival.
  A `prev` that is not below the message's own number is nonsense and taken for 0.
- A `prev` below `floor` was dropped and is never pulled: nobody waits for it.
- Two messages with one predecessor are both released after it. What becomes free together is released in order of
  number; what waited long enough takes everything with it that waits in its group and has a lower number.
- Late is what is released after a message of the same origin and topic with a higher number, as far as one of the two
  has a `prev`: the numbers of an origin without any may be random (js-libp2p's are).
- A late message waits for its predecessor like any other, so those that come late come in order too.

Bounds: MAX_WAITING of one origin and topic, MAX_WAITING_IN_ALL; at them the lowest number of the group, and the one
that waited longest, go ahead early. The highest released numbers are remembered of MAX_ORIGINS; of the one forgotten, a
message that comes late is not said to be late.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from p2pnode.core.message import SEQNO_BYTES, MessageId

HOLD_SECONDS = 2.0
MAX_WAITING = 256
"""Of one origin and topic."""

MAX_WAITING_IN_ALL = 10_000
MAX_ORIGINS = 65_536
"""Pairs of origin and topic whose highest released number is remembered: some 15 MiB."""

_Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Gap:
    """A message that another names as its predecessor and that is not here."""

    topic: str
    origin: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Released:
    """A message that readers may have now; `late`: after one that followed it."""

    id: MessageId
    late: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What an offered message brings about.

    Args:
        released: in order; the offered one is among them unless it waits.
        gap: what is missing before it, whether it waits or not.
    """

    released: tuple[Released, ...]
    gap: Gap | None = None


@dataclass(slots=True)
class _Waiting:
    id: MessageId
    key: _Key
    number: int
    prev: int
    until: float


@dataclass(slots=True)
class _Group:
    """What waits of one origin and topic, by number, and by the number that it waits for."""

    waiting: dict[int, _Waiting] = field(default_factory=dict)
    behind: dict[int, set[int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Mark:
    """The highest released number, and the highest of those that had a `prev`."""

    any: int = 0
    chained: int = 0


class Ordering:
    """See the module. Times are monotonic seconds; one that lies before an earlier one counts as that."""

    __slots__ = ("_groups", "_marks", "_now", "_waiting")

    def __init__(self) -> None:
        self._groups: dict[_Key, _Group] = {}
        self._waiting: OrderedDict[MessageId, _Waiting] = OrderedDict()
        self._marks: OrderedDict[_Key, _Mark] = OrderedDict()
        self._now = -math.inf

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._waiting)

    def offer(
        self,
        id: MessageId,
        topic: str,
        origin: bytes,
        number: int,
        prev: int,
        is_stored: Callable[[MessageId], bool],
        now: float,
        *,
        floor: int = 0,
    ) -> Decision:
        """Take a newly accepted message; each id once, but one that waits may be offered again for nothing.

        After a restart, what is stored unreleased is offered anew, of each origin the lower numbers first.

        Args:
            number: its seqno.
            prev: the origin's previous seqno on the topic.
            is_stored: is a message here? Those that wait may be said to be.
            floor: the topic's horizon. It is in ns of signed time, as our nodes' numbers are, which are never lower
                than the signed time: what has a number below it is below the horizon.
        """
        self._now = now = max(now, self._now)
        if id in self._waiting:
            return Decision(())
        if not 0 < prev < number:
            prev = 0
        key = (topic, origin)
        group = self._groups.get(key)
        is_waited_for = prev >= max(floor, 1)
        is_behind = is_waited_for and group is not None and prev in group.waiting
        if not is_waited_for or (not is_behind and is_stored(MessageId(origin + prev.to_bytes(SEQNO_BYTES, "big")))):
            return Decision((self._passed(id, key, number, prev), *self._go_on(key, number)))
        if group is None:
            group = self._groups[key] = _Group()
        each = _Waiting(id, key, number, prev, now + HOLD_SECONDS)
        self._waiting[id] = group.waiting[number] = each
        group.behind.setdefault(prev, set()).add(number)
        released: tuple[Released, ...] = ()
        if len(group.waiting) > MAX_WAITING:
            released = self._free(key, [min(group.waiting)])
        elif len(self._waiting) > MAX_WAITING_IN_ALL:
            released = self._give_up(next(iter(self._waiting.values())))
        return Decision(released, None if is_behind else Gap(topic, origin, prev))

    def due(self, now: float) -> tuple[Released, ...]:
        """What waited long enough, and what goes with it, in order."""
        self._now = now = max(now, self._now)
        released: list[Released] = []
        while self._waiting and (first := next(iter(self._waiting.values()))).until <= now:
            released += self._give_up(first)
        return tuple(released)

    def next_deadline(self) -> float:
        """When `due` has something to say; infinity while nothing waits."""
        return next(iter(self._waiting.values())).until if self._waiting else math.inf

    def released_before(self, topic: str, origin: bytes, number: int, prev: int) -> None:
        """A message was released in an earlier run of this node."""
        self._mark((topic, origin), number, prev)

    def _give_up(self, each: _Waiting) -> tuple[Released, ...]:
        """Let one go ahead, and first what has a lower number: later it could only be late."""
        group = self._groups[each.key]
        return self._free(each.key, [number for number in group.waiting if number <= each.number])

    def _go_on(self, key: _Key, number: int) -> tuple[Released, ...]:
        """What waited for a number that has just been released."""
        group = self._groups.get(key)
        return self._free(key, group.behind.get(number, ())) if group is not None else ()

    def _free(self, key: _Key, numbers: Iterable[int]) -> tuple[Released, ...]:
        """Release these of a group and all that waits behind them, in order of number."""
        group, released = self._groups[key], []
        heap = list(numbers)
        heapify(heap)
        while heap:
            each = group.waiting.pop(heappop(heap), None)
            if each is None:
                continue  # it was freed already, as one that waited behind another
            del self._waiting[each.id]
            siblings = group.behind[each.prev]
            siblings.discard(each.number)
            if not siblings:
                del group.behind[each.prev]
            released.append(self._passed(each.id, key, each.number, each.prev))
            for follower in group.behind.get(each.number, ()):
                heappush(heap, follower)
        if not group.waiting:
            del self._groups[key]
        return tuple(released)

    def _passed(self, id: MessageId, key: _Key, number: int, prev: int) -> Released:
        mark = self._mark(key, number, prev)
        return Released(id, number < (mark.any if prev else mark.chained))

    def _mark(self, key: _Key, number: int, prev: int) -> _Mark:
        mark = self._marks.get(key)
        if mark is None:
            mark = self._marks[key] = _Mark()
            if len(self._marks) > MAX_ORIGINS:
                self._marks.popitem(last=False)
        else:
            self._marks.move_to_end(key)
        mark.any = max(mark.any, number)
        if 0 < prev < number:
            mark.chained = max(mark.chained, number)
        return mark
