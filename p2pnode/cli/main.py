"""The entry: finds the command, imports only that, and turns errors into words and exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

import click

from p2pnode.cli.output import complain
from p2pnode.errors import InvalidRequest, P2PNodeError

USAGE: Final = 64
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

COMMANDS: Final[Mapping[str, str]] = {
    "run": "p2pnode.cli.run:run",
    "bridge": "p2pnode.cli.bridge:bridge",
    "fleet": "p2pnode.cli.fleet:fleet",
    "demo": "p2pnode.cli.fleet:demo",
    "peers": "p2pnode.cli.peers:peers",
    "id": "p2pnode.cli.node:show_id",
    "status": "p2pnode.cli.node:status",
    "doctor": "p2pnode.cli.doctor:doctor",
    "topics": "p2pnode.cli.node:topics",
    "mesh": "p2pnode.cli.mesh:mesh",
    "ping": "p2pnode.cli.ping:ping",
    "pub": "p2pnode.cli.pub:pub",
    "sub": "p2pnode.cli.sub:sub",
    "messages": "p2pnode.cli.messages:messages",
    "council": "p2pnode.cli.council:council",
    "agent": "p2pnode.cli.agents:agent",
    "agents": "p2pnode.cli.agents:agents",
    "deliveries": "p2pnode.cli.deliveries:deliveries",
    "carriers": "p2pnode.cli.carriers:carriers",
    "keygen": "p2pnode.cli.local:keygen",
    "store": "p2pnode.cli.store:store",
    "config": "p2pnode.cli.local:config",
    "version": "p2pnode.cli.local:version",
}
"""Where each command lives; in the order `--help` lists them."""


class LazyGroup(click.Group):
    """Imports a command when it is asked for; no command's module imports more than it needs to start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """A libp2p gossip sidecar: finds every agent, tells them all, loses nothing.

    Exit codes: 0 good, 1 degraded or not found, 2 bad or failed, 3 no sidecar answers, 64 wrong usage.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None: those of this process.

    Returns:
        The exit code.
    """
    if "_P2PNODE_COMPLETE" in os.environ:
        cli.main(prog_name="p2pnode")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A peer may put into JSON what no encoding can hold, a lone surrogate for one.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with cli.make_context("p2pnode", list(sys.argv[1:] if argv is None else argv)) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "p2pnode"
        complain(error.format_message(), f"see `{path} --help`")
        return USAGE
    except P2PNodeError as error:
        faults = [str(fault) for fault in error.faults] if isinstance(error, InvalidRequest) else []
        complain(error.detail, *faults, error.hint)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has gone. What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED
    return code if isinstance(code, int) else 0
