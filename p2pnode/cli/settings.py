"""The flags that are settings, shared by `run` and `config`, and the call that resolves them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from p2pnode.config import Loaded


_ROLE: Final = click.option("--role", metavar="ROLE", help="chorus, whoosh, bridge or bootstrap. [default: chorus]")
_OTHERS: Final = (
    click.option("--name", metavar="NAME", help="What people call this node."),
    click.option("--data-dir", metavar="DIR", help="Where its key and messages are kept."),
    click.option(
        "--listen",
        metavar="MULTIADDR",
        multiple=True,
        help="Listen for peers there; repeatable. [default: /ip4/0.0.0.0/tcp/9000]",
    ),
    click.option(
        "--bootstrap",
        metavar="MULTIADDR",
        multiple=True,
        help="Join by this peer, /…/p2p/PEER_ID; also file:PATH and dns:NAME[:PORT]; repeatable.",
    ),
    click.option(
        "--discovery",
        metavar="MODE",
        help="Where else to look for peers: auto, docker-swarm, dns, mdns or static (nowhere). [default: auto]",
    ),
    click.option("--mdns/--no-mdns", default=None, help="Look for peers by multicast DNS, or not. [default: auto]"),
    click.option(
        "--announce", metavar="MULTIADDR", multiple=True, help="Tell others to dial this address; repeatable."
    ),
    click.option(
        "--api",
        metavar="ADDR",
        multiple=True,
        help="Serve the local API there: unix:PATH or tcp:HOST:PORT; repeatable.",
    ),
    click.option("--api-token-file", metavar="FILE", help="Bearer token the API asks for."),
    click.option("--carrier", metavar="HOST:PORT", help="Take messages from other sidecars by HTTP, as a last resort."),
    click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
    click.option(
        "--log-format", metavar="FORMAT", help="auto, json or text. [default: auto: text on a terminal, else json]"
    ),
    click.option("--config", "config_file", metavar="FILE", help="A TOML file with settings."),
)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every flag that is a setting, and `--config`.

    The flags have no defaults and no checks here: flags, environment, file and defaults are checked together,
    so that every fault is reported at once.
    """
    return _ROLE(roleless_options(command))


def roleless_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of `settings_options` but `--role`, for a command that is a role."""
    for option in reversed(_OTHERS):
        command = option(command)
    return command


def load(flags: dict[str, Any]) -> Loaded:
    """Resolve the settings from the values of `settings_options`.

    Raises:
        InvalidConfig: with every fault found.
    """
    from p2pnode.config import load_settings

    file = flags.pop("config_file")
    if (mdns := flags.pop("mdns")) is not None:
        flags["mdns"] = "on" if mdns else "off"
    given = {f"--{name.replace('_', '-')}": value for name, value in flags.items() if value not in (None, ())}
    return load_settings(given, os.environ, None if file is None else Path(file))
