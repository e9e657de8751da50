"""The Python client for agents: publish, and subscribe with acknowledgement; blocking, or async (trio and asyncio)."""

from p2pnode.client.asking import NotASidecar, Payload, Published
from p2pnode.client.asynchronous import AsyncClient, AsyncSubscription
from p2pnode.client.blocking import Client, Subscription
from p2pnode.client.following import Message

__all__ = [
    "AsyncClient",
    "AsyncSubscription",
    "Client",
    "Message",
    "NotASidecar",
    "Payload",
    "Published",
    "Subscription",
]
