"""`fleet` and `demo`: many sidecars on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def _size_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--dir",
            "directory",
            metavar="DIR",
            type=click.Path(path_type=Path),
            help="Where the nodes keep their files.",
        ),
        click.option(
            "--orchestrators",
            type=click.IntRange(min=0),
            default=1,
            show_default=True,
            help="How many WHOOSH sidecars.",
        ),
        click.option(
            "--agents", type=click.IntRange(min=0), default=33, show_default=True, help="How many CHORUS sidecars."
        ),
    ):
        command = option(command)
    return command


@click.command()
@_size_options
def fleet(agents: int, orchestrators: int, directory: Path | None) -> int:
    """Many sidecars on this machine; Ctrl-C stops all."""
    from p2pnode.fleet import run_fleet

    return run_fleet(agents, orchestrators, directory, _say)


@click.command()
@_size_options
def demo(agents: int, orchestrators: int, directory: Path | None) -> int:
    """A fleet, one council from opportunity to active, and its architect killed, told step by step."""
    from p2pnode.demo import run_demo

    return run_demo(agents, orchestrators, directory)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
