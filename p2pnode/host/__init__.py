"""The only package that imports libp2p: connections, streams, and the seams to the library.

The library's first import happens here, before that of any module of the package, so that what
a TCP node never runs stays unimported whichever module comes first.
"""

import os

# Sends a yamux window update per read unless told otherwise: a quarter of a hop's CPU.
os.environ.setdefault("PY_YAMUX_RELEASE_ON_READ", "0")

from google.protobuf.internal import api_implementation

from p2pnode.lean import LIBP2P, PROTOBUF, without

with without(LIBP2P if api_implementation.Type() == "python" else LIBP2P + PROTOBUF):
    import libp2p.host.basic_host

    # Loaded by the library at the first connection, which is too late.
    import libp2p.network.connection.swarm_connection  # noqa: F401

from p2pnode.host.replaced import replace

replace()
