"""The local HTTP API: what the agent, the operator and the monitoring ask this node.

`open_api` is in `p2pnode.api.server`; `parse_api_address` in `p2pnode.local.address`, which imports nothing heavy.
The libraries' first import happens here, so that HTTP/2, WebSocket and a second HTTP server stay unimported.
"""

from p2pnode.lean import API, without

with without(API):
    import hypercorn.trio.tcp_server  # noqa: F401
    import prometheus_client  # noqa: F401
