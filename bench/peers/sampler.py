"""Where a Python process spends its CPU time: a stack for each millisecond of it, or kernel tick if that is longer.

Unlike a tracing profiler it does not change what it measures: a function called often costs no more.
"""

from __future__ import annotations

import signal
from collections import Counter
from types import FrameType
from typing import Any

INTERVAL_SECONDS = 0.001


LAYERS = (
    ("p2pnode/core/yamux", "yamux"),
    ("p2pnode/core/", "our router"),
    ("p2pnode/wire/", "our RPC and message codec"),
    ("p2pnode/node/", "our loop around the router"),
    ("p2pnode/identity", "signatures"),
    ("/nacl/", "signatures"),
    ("p2pnode/host/fused/noise", "Noise"),
    ("cryptography/", "Noise"),
    ("p2pnode/host/", "our streams"),
    ("bench/peers/", "bench peer or library adapter"),
    ("libp2p/pubsub/", "library's pubsub"),
    ("libp2p/stream_muxer/", "yamux"),
    ("libp2p/security/", "Noise"),
    ("/noise/", "Noise"),
    ("libp2p/io/", "Noise"),
    ("libp2p/", "other libp2p"),
)
"""Part of a file's path, and what it is called; the first that fits counts. `libp2p/io` holds Noise's framing."""

UNCLAIMED = "trio's scheduler and I/O alone"


class Sampler:
    """Counts functions at the top of the stack (`self`) and anywhere in it (`total`), and layers. C code counts for its
    caller; trio and the standard library count for the innermost layer that called them.
    """

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._total: Counter[str] = Counter()
        self._layers: Counter[str] = Counter()
        self._samples = 0

    def start(self) -> None:
        self._own.clear()
        self._total.clear()
        self._layers.clear()
        self._samples = 0
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)

    def stop(self) -> dict[str, Any]:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return {
            "samples": self._samples,
            "self": self._own.most_common(),
            "total": self._total.most_common(),
            "layers": self._layers.most_common(),
        }

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._samples += 1
        seen: set[str] = set()
        layer = ""
        while frame is not None:
            code = frame.f_code
            name = f"{'/'.join(code.co_filename.split('/')[-2:])}:{code.co_qualname}"
            if not seen:
                self._own[name] += 1
            seen.add(name)
            if not layer and not code.co_filename.endswith("bench/peers/python_node.py"):
                layer = next((name for part, name in LAYERS if part in code.co_filename), "")
            frame = frame.f_back
        self._total.update(seen)
        self._layers[layer or UNCLAIMED] += 1
