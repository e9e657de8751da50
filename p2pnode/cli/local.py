"""`keygen`, `config`, `version`: commands that ask no sidecar."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.settings import load, settings_options

NETWORK_KEY_HEAD: Final = "/key/swarm/psk/1.0.0/\n/base16/\n"
"""libp2p specs, pnet/Private-Networks-PSK-V1.md: what comes before 64 hexadecimal digits."""


@click.command()
@click.option("--network", is_flag=True, help="The key of a private network instead; without FILE it is printed.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
def keygen(network: bool, file: Path | None) -> int:
    """Make a node key, write it to FILE (mode 0600) and print its peer id; never overwrites.

    With --network: the text of a swarm.key file, as go, js and kubo have it too, for all nodes of a private network.
    """
    if network:
        text = f"{NETWORK_KEY_HEAD}{secrets.token_hex(32)}\n"
        if file is None:
            sys.stdout.write(text)
            return 0
        from p2pnode.identity import write_key_file

        write_key_file(file, text.encode(), hint="choose another file, or move the old key away: its network needs it")
        return 0
    if file is None:
        raise click.UsageError("Missing argument 'FILE'; only with --network is the key printed.")
    from p2pnode.identity import create_key_file

    sys.stdout.write(f"{create_key_file(file).peer_id}\n")
    return 0


@click.group()
def config() -> None:
    """The settings `run` would use: the same flags, environment, file and defaults."""


@config.command()
@settings_options
def check(**flags: Any) -> int:
    """Say what is wrong with the settings, all of it at once; exit code 0 when nothing is."""
    load(flags)
    sys.stdout.write("the settings are good\n")
    return 0


@config.command()
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table")
@settings_options
def show(form: str, **flags: Any) -> int:
    """Print every setting and where its value comes from."""
    from p2pnode.config import render_settings, settings_document

    loaded = load(flags)
    if form == "json":
        output.print_json({"settings": settings_document(loaded), "sources": dict(loaded.sources)})
    else:
        rows = [(row.key, row.value, row.source) for row in render_settings(loaded)]
        output.print_table(["KEY", "VALUE", "SOURCE"], [[output.clean(text) for text in row] for row in rows])
    return 0


@click.command()
def version() -> int:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("p2pnode")
    except PackageNotFoundError:
        number = "(not installed)"
    sys.stdout.write(f"p2pnode {number}\n")
    return 0
