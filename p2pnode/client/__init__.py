"""The Python client for agents: publish, subscribe, sit in councils; blocking, or async (trio and asyncio)."""

from p2pnode.client.asking import NotASidecar, Payload, Published
from p2pnode.client.asynchronous import AsyncClient, AsyncCouncilWatch, AsyncSubscription
from p2pnode.client.blocking import Client, CouncilWatch, Subscription
from p2pnode.client.following import Message

__all__ = [
    "AsyncClient",
    "AsyncCouncilWatch",
    "AsyncSubscription",
    "Client",
    "CouncilWatch",
    "Message",
    "NotASidecar",
    "Payload",
    "Published",
    "Subscription",
]
