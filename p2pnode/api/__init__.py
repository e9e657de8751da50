"""The local HTTP API: what the agent, the operator and the monitoring ask this node.

`open_api` is in `p2pnode.api.server`; `parse_api_address` in `p2pnode.local.address`, which imports nothing heavy.
"""
