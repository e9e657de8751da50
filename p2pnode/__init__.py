"""p2pnode: a libp2p gossip sidecar."""

__version__ = "0.1.0"
