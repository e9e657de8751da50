"""`store check`, `store compact`: the message store of a data directory, looked at without asking its sidecar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from p2pnode.cli import output

if TYPE_CHECKING:
    from p2pnode.store.maintenance import Report

BAD: Final = 2


@click.group()
def store() -> None:
    """The message store: is it whole, and how large is it?"""


def _place(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text"),
        click.option("--data-dir", metavar="DIR", help="The sidecar's. [default: as the settings say]"),
        click.option("--config", "config_file", metavar="FILE", help="The settings. [env: P2PNODE_CONFIG]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@store.command()
@_place
@click.option("--signatures", is_flag=True, help="Verify every message's signature as well.")
def check(form: str, data_dir: str | None, config_file: str | None, signatures: bool) -> int:
    """Read the whole store, beside a running sidecar too, and say what is wrong with it; nothing is changed.

    Exit code 0: it is whole; 1: there is none; 2: it is damaged.
    """
    from p2pnode.store.maintenance import check as check_store

    path = _path(data_dir, config_file)
    report = check_store(path, _signature_judge() if signatures else None)
    if form == "json":
        output.print_json({"path": str(path), "good": not report.problems, **asdict(report)})
    else:
        _print(path, report)
    return BAD if report.problems else 0


@store.command()
@_place
def compact(form: str, data_dir: str | None, config_file: str | None) -> int:
    """Write the store anew without its unused space; only while no sidecar uses it."""
    from p2pnode.store.maintenance import compact as compact_store

    path = _path(data_dir, config_file)
    done = compact_store(path)
    if form == "json":
        output.print_json({"path": str(path), "before_bytes": done.before, "after_bytes": done.after})
    else:
        sys.stdout.write(f"{output.clean(str(path))}: {done.before:,} bytes before, {done.after:,} after\n")
    return 0


def _path(data_dir: str | None, config_file: str | None) -> Path:
    from p2pnode.store.database import DATABASE_NAME

    if data_dir:
        return Path(data_dir).expanduser() / DATABASE_NAME
    from p2pnode.config import load_settings

    loaded = load_settings({}, os.environ, Path(config_file) if config_file else None)
    return loaded.settings.node.data_dir / DATABASE_NAME


def _print(path: Path, report: Report) -> None:
    verdict = output.paint("damaged", "red") if report.problems else output.paint("good", "green")
    sys.stdout.write(f"{verdict}: {output.clean(str(path))}\n")
    sys.stdout.write("".join(f"  {output.clean(problem)}\n" for problem in report.problems))
    if report.problems:
        sys.stdout.write(
            f"  fix: stop the sidecar, restore a backup, or move {path.name} and {path.name}-wal aside to start empty\n"
        )
    output.print_fields(
        {
            **{name.replace("_", " "): f"{count:,}" for name, count in report.counts.items()},
            "topics": [f"{name} {count:,}" for name, count in report.topics.items()],
            "last arrival": f"{report.last_arrival:,}",
            "file bytes": f"{report.file_bytes:,}",
            "log bytes": f"{report.log_bytes:,}",
            "unused bytes": f"{report.unused_bytes:,}",
            "version": f"{report.version}, readable by {report.readable_by} and later",
        }
    )


def _signature_judge() -> Callable[[bytes, bytes], str]:
    from p2pnode.errors import InvalidMessage
    from p2pnode.identity import verifier_for
    from p2pnode.wire.pubsub import decode_message, message_verify

    verify = message_verify(verifier_for)

    def judge(message_id: bytes, raw: bytes) -> str:
        try:
            message = decode_message(raw)
        except InvalidMessage as error:
            return error.detail
        if message.id != message_id:
            return "it is stored under the id of another one"
        return "" if verify(message) else "its signature is not its origin's"

    return judge
