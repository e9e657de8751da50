"""The bridge as a part of a node: its mesh on one side, NATS on the other."""

from p2pnode.node.bridge.bridge import Bridge, BridgeTools
from p2pnode.node.bridge.importing import ImportKey

__all__ = ["Bridge", "BridgeTools", "ImportKey"]
