"""`run`: one sidecar in the foreground."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from p2pnode.cli.settings import load, settings_options

_AGENT: Final = "p2pnode.agent-command"


class TakesAgent(click.Command):
    """Takes what follows `--` as the agent's command line, untouched.

    click alone cannot tell `run -- sh` from `run sh`, and a flag that lost its dashes must not start a program.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            split = args.index("--")
            agent = args[split + 1 :]
            if not agent:
                raise click.UsageError("after `--` comes the agent's command", ctx)
            ctx.meta[_AGENT] = agent
            args = args[:split]
        return super().parse_args(ctx, args)


@click.command(cls=TakesAgent, options_metavar="[OPTIONS] [-- COMMAND...]")
@settings_options
@click.pass_context
def run(ctx: click.Context, /, **flags: Any) -> int:
    """One sidecar in the foreground; COMMAND, if given, is the agent that runs under it.

    The agent starts when the sidecar is ready, finds it in P2PNODE_API, gets its signals, and its exit
    status becomes that of this command.
    """
    return start(ctx, flags)


def start(ctx: click.Context, flags: dict[str, Any]) -> int:
    """Run a sidecar until it leaves; the exit code.

    Args:
        ctx: of a `TakesAgent` command.
        flags: the values of `settings_options`.
    """
    settings = load(flags)

    from p2pnode.app import run_sidecar

    return run_sidecar(settings, agent_command(ctx))


def agent_command(ctx: click.Context) -> Sequence[str] | None:
    """What a `TakesAgent` command found after `--`; None without."""
    agent: Sequence[str] | None = ctx.meta.get(_AGENT)
    return agent
