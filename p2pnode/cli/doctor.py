"""`doctor`: why a node is alone or degraded, and the fix."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from p2pnode.cli import output
from p2pnode.cli.sidecar import connect, object_of, sidecar_options
from p2pnode.errors import NoSidecar
from p2pnode.local.http import NotASidecar, refusal

ANSWER_SECONDS: Final = 8.0
"""The sidecar compares clocks and tries its disk, two seconds at most for each."""

_STYLES: Final[Mapping[str, str]] = {
    "healthy": "green",
    "degraded": "yellow",
    "failed": "red",
    "unknown": "red",
    "note": "cyan",
}
_EXIT_CODES: Final[Mapping[str, int]] = {"healthy": 0, "degraded": 1, "failed": 2}


@click.command()
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text")
@click.option(
    "--config", "config_file", metavar="FILE", help="Looked at when no sidecar answers. [env: P2PNODE_CONFIG]"
)
@click.option("--data-dir", metavar="DIR", help="The same: where that sidecar keeps its key.")
@sidecar_options
def doctor(
    form: str, config_file: str | None, data_dir: str | None, api: str | None, api_token_file: str | None
) -> int:
    """Why is this node alone or degraded, and what is the fix?

    Exit code 0: healthy; 1: degraded; 2: failed; 3: no sidecar answers, and what can be told without one is told.
    """
    from p2pnode.cli.offline import registered

    found = registered()
    try:
        told = _ask(api, api_token_file)
    except NoSidecar as error:
        told = _offline(error, found, api, config_file, data_dir)
    if form == "json":
        output.print_json(told)
    else:
        _print(told)
    return _EXIT_CODES.get(str(told.get("status")), NoSidecar.exit_code)


def _ask(api: str | None, token_file: str | None) -> Mapping[str, Any]:
    response = connect(api, token_file).request("GET", "/api/v1/doctor", timeout_seconds=ANSWER_SECONDS)
    if response.status == 404:
        raise NotASidecar("the sidecar knows no doctor", hint="it is of an older version: start it anew with this one")
    if response.status != 200:
        raise refusal(response)
    told = object_of(response.json(), "its condition")
    if told.get("status") not in _EXIT_CODES:
        raise NotASidecar("what it says of its condition is not understood", hint="is it of the same version?")
    return told


def _offline(
    error: NoSidecar, found: Any, api: str | None, config_file: str | None, data_dir: str | None
) -> Mapping[str, Any]:
    import os
    from datetime import UTC, datetime
    from pathlib import Path

    from p2pnode.cli.offline import document, examine
    from p2pnode.config import load_settings

    def load() -> Any:
        flags = {"--data-dir": data_dir} if data_dir else {}
        return load_settings(flags, os.environ, Path(config_file) if config_file else None).settings

    findings, checked = examine(error, found, api, load)
    return document(findings, checked, datetime.now(UTC).isoformat().replace("+00:00", "Z"))


def _print(told: Mapping[str, Any]) -> None:
    status = str(told.get("status"))
    lines = [f"{output.paint(status, _STYLES.get(status, ''))}: {output.clean(str(told.get('summary') or ''))}"]
    findings = _objects(told.get("findings"))
    for finding in findings:
        severity = str(finding.get("severity"))
        code = output.clean(str(finding.get("code")))
        lines.append("")
        lines.append(
            f"{output.paint(severity, _STYLES.get(severity, ''))} {output.paint(code, 'bold')}: "
            f"{output.clean(str(finding.get('title')))}"
        )
        lines += [f"  {output.clean(str(line))}" for line in _list(finding.get("evidence"))]
        lines.append(f"  {output.paint('fix:', 'bold')} {output.clean(str(finding.get('fix')))}")
    checked = ", ".join(output.clean(str(name)) for name in _list(told.get("checked")))
    lines += [*([""] if findings else []), f"{'checked' if findings else 'checked, and good'}: {checked}"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _objects(value: Any) -> Sequence[Mapping[str, Any]]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []
