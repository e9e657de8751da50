"""NATS as a road: a connection that comes back by itself, JetStream where the server has it."""

from p2pnode.carriers.nats.broker import NatsBroker
from p2pnode.carriers.nats.settings import BrokerSettings

__all__ = ["BrokerSettings", "NatsBroker"]
