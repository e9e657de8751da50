"""`p2pnode` with a message store that answers at once and forgets at the end, to see what the store costs.

python -m bench.peers.storeless run …
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import trio

from p2pnode import app
from p2pnode.cli.main import main
from p2pnode.core.message import MessageId
from p2pnode.ports import Add, Change, Contents, Drop


class InstantStore:
    """A `ports.MessageStore` of bytes only: all else is in the node's own memory for as long as it runs."""

    def __init__(self) -> None:
        self._raws: dict[MessageId, bytes] = {}

    async def load(self) -> Contents:
        await trio.lowlevel.checkpoint()
        return Contents()

    async def write(self, changes: Sequence[Change], *, full: bool) -> None:
        for change in changes:
            if isinstance(change, Add):
                self._raws.setdefault(change.entry.id, change.raw)
            elif isinstance(change, Drop):
                for each in change.ids:
                    self._raws.pop(each, None)
        await trio.lowlevel.checkpoint()

    async def read(self, ids: Sequence[MessageId]) -> Mapping[MessageId, bytes]:
        await trio.lowlevel.checkpoint()
        return {each: self._raws[each] for each in ids if each in self._raws}


@asynccontextmanager
async def open_instant(path: Path) -> AsyncIterator[InstantStore]:
    """In the place of `open_messages`."""
    yield InstantStore()


if __name__ == "__main__":
    with patch.object(app, "open_messages", open_instant):
        sys.exit(main())
