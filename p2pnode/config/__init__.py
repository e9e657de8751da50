"""Configuration: flags > environment > TOML file > defaults.

Importing this costs neither pydantic nor multiaddr; `load_settings` does.
"""

from p2pnode.config.layers import FLAGS, Loaded, load_settings
from p2pnode.config.render import Row, reference_tables, render_settings, settings_document
from p2pnode.config.settings import (
    AgentSettings,
    ApiSettings,
    CouncilSettings,
    GossipSettings,
    LogSettings,
    MessagesSettings,
    NetworkSettings,
    NodeSettings,
    Role,
    Settings,
    Stack,
    TransportSettings,
    TrustSettings,
)

__all__ = [
    "FLAGS",
    "AgentSettings",
    "ApiSettings",
    "CouncilSettings",
    "GossipSettings",
    "Loaded",
    "LogSettings",
    "MessagesSettings",
    "NetworkSettings",
    "NodeSettings",
    "Role",
    "Row",
    "Settings",
    "Stack",
    "TransportSettings",
    "TrustSettings",
    "load_settings",
    "reference_tables",
    "render_settings",
    "settings_document",
]
