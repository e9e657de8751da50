"""Layering: flags over environment over TOML file over defaults, every fault reported at once."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pnode.config.rules import contradictions
from p2pnode.config.settings import Key, Settings, keys
from p2pnode.errors import EnvironmentFault, Fault, InvalidConfig
from p2pnode.paths import default_data_dir

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

FLAGS: Final[Mapping[str, str]] = {
    "--role": "node.role",
    "--name": "node.name",
    "--data-dir": "node.data_dir",
    "--listen": "network.listen",
    "--bootstrap": "network.bootstrap",
    "--announce": "network.announce",
    "--discovery": "discovery.mode",
    "--mdns": "discovery.mdns",
    "--api": "api.listen",
    "--api-token-file": "api.token_file",
    "--carrier": "carriers.listen",
    "--log-level": "log.level",
    "--log-format": "log.format",
}
"""Flag to key; a flag of a list may be repeated."""

ALIASES: Final[Mapping[str, str]] = {
    "CHORUS_AGENT_ID": "agent.id",
    "CHORUS_AGENT_NAME": "agent.name",
    "CHORUS_BOOTSTRAP_PEERS": "network.bootstrap",
    "CHORUS_SERVICE_NAME": "discovery.services",
    "DOCKER_HOST": "discovery.docker_host",
    "NATS_CREDS": "nats.creds_file",
    "NATS_NKEY": "nats.nkey",
    "NATS_PASSWORD": "nats.password",
    "NATS_TOKEN": "nats.token",
    "NATS_URL": "nats.url",
    "NATS_USER": "nats.user",
    "P2PNODE_ROLLBACK": "carriers.rollback",
    "WHOOSH_DISCOVERY_MODE": "discovery.mode",
}
"""Variables that operators of CHORUS set already; they rank with the environment, below the `P2PNODE_` form."""

FALLBACKS: Final[Sequence[tuple[str, str, str]]] = (
    ("CHORUS_AGENT_NAME", "node.name", "{}"),
    ("CHORUS_AGENT_PORT", "agent.endpoint", "http://127.0.0.1:{}"),
    ("CHORUS_AGENT_PORT", "discovery.agent_port", "{}"),
    ("CHORUS_P2P_PORT", "network.listen", "/ip4/0.0.0.0/tcp/{}"),
    ("CHORUS_P2P_PORT", "discovery.p2p_port", "{}"),
)
"""Variables that change a default only: which one, and how. Whatever sets the key itself wins, the file included."""

OTHER_VARIABLES: Final = ("P2PNODE_API", "P2PNODE_CONFIG")
"""Known, but no settings: which sidecar the commands ask, and where the TOML file is."""

_PREFIX: Final = "P2PNODE_"
_NO_TABLE: Final = "must be a table, [{section}], with keys in it"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded and where each value came from.

    Args:
        settings: the values.
        sources: dotted key to `default`, `file PATH`, `env NAME` or `flag --x`; every key is there.
    """

    settings: Settings
    sources: Mapping[str, str]


@dataclass(slots=True)
class _Merge:
    """Values and sources as they pile up, the later layer over the earlier one."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def put(self, dotted: str, value: Any, source: str) -> None:
        self.values[dotted] = value
        self.sources[dotted] = source

    def fault(self, dotted: str, problem: str, source: str = "") -> None:
        source = source or self.sources.get(dotted.split("[")[0], "default")
        self.faults.append(Fault(f"{dotted} ({source})", problem))

    def sections(self, without: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
        """The values as nested tables, those of some keys left out."""
        nested: dict[str, dict[str, Any]] = {}
        for dotted, value in self.values.items():
            if dotted not in without:
                section, _, name = dotted.partition(".")
                nested.setdefault(section, {})[name] = value
        return nested


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Loaded:
    """Build the settings from all four layers. A value that a higher layer replaces is not looked at.

    Args:
        flags: by the names in `FLAGS`; None, an empty string and an empty list mean "not given".
        environ: an empty variable counts as not set.
        file: the TOML file of `--config`; None: the one in `P2PNODE_CONFIG`, if any.

    Raises:
        InvalidConfig: with every fault found; each names the key and where it came from.
        ValueError: a flag that is not in `FLAGS`: a mistake in the program.
    """
    known = {key.dotted: key for key in keys()}
    merge = _Merge()
    _put_fallbacks(merge, known, environ)
    _put_file(merge, known, environ, file)
    _put_environment(merge, known, environ)
    _put_flags(merge, known, flags)
    if "node.data_dir" not in merge.values:
        try:
            merge.put("node.data_dir", str(default_data_dir(environ)), "default")
        except EnvironmentFault as error:
            merge.fault("node.data_dir", f"{error.detail}; {error.hint}")
            merge.put("node.data_dir", "/", "default")
    settings = _validate(merge)
    if settings is None or merge.faults:
        count = len(merge.faults)
        raise InvalidConfig(f"the configuration has {count} fault{'s' if count != 1 else ''}:", merge.faults)
    return Loaded(settings, {dotted: merge.sources.get(dotted, "default") for dotted in known})


def _put_fallbacks(merge: _Merge, known: Mapping[str, Key], environ: Mapping[str, str]) -> None:
    for name, dotted, form in FALLBACKS:
        if text := environ.get(name):
            value = form.format(text)
            merge.put(dotted, (value,) if known[dotted].many else value, f"env {name}")


def _put_file(merge: _Merge, known: Mapping[str, Key], environ: Mapping[str, str], file: Path | None) -> None:
    named_by = "flag --config"
    if file is None:
        path = environ.get("P2PNODE_CONFIG", "")
        if not path:
            return
        file, named_by = Path(path), "env P2PNODE_CONFIG"
    source = f"file {file}"
    try:
        content = file.read_bytes()
    except OSError as error:
        merge.faults.append(Fault(named_by, f"{file} cannot be read: {error.strerror}"))
        return
    try:
        # Windows editors begin UTF-8 files with a mark that TOML does not know.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        merge.faults.append(Fault(f"{source}, line {line}", "is not UTF-8, as TOML must be"))
        return
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        merge.faults.append(_syntax_fault(source, text, str(error)))
        return
    sections = {key.section for key in known.values()}
    for section, table in document.items():
        if section not in sections:
            merge.fault(section, _unknown_section(section, table, known), source)
        elif not isinstance(table, dict):
            merge.fault(section, _NO_TABLE.format(section=section), source)
        else:
            for name, value in table.items():
                dotted = f"{section}.{name}"
                if dotted in known:
                    merge.put(dotted, value, source)
                else:
                    merge.fault(dotted, f"there is no such key{_meant(dotted, _toml_candidates(name, known))}", source)


def _put_environment(merge: _Merge, known: Mapping[str, Key], environ: Mapping[str, str]) -> None:
    variables = {key.variable: key for key in known.values()}
    for alias, dotted in ALIASES.items():
        if text := environ.get(alias):
            merge.put(dotted, _from_text(text, known[dotted]), f"env {alias}")
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in OTHER_VARIABLES or name in ALIASES:
            continue
        if name not in variables:
            merge.faults.append(Fault(f"env {name}", f"there is no such variable{_meant(name, variables)}"))
        elif text := environ[name]:
            merge.put(variables[name].dotted, _from_text(text, variables[name]), f"env {name}")


def _put_flags(merge: _Merge, known: Mapping[str, Key], flags: Mapping[str, object]) -> None:
    for flag, value in flags.items():
        if flag not in FLAGS:
            raise ValueError(f"{flag!r} is no flag of the configuration; FLAGS has {', '.join(FLAGS)}")
        if value is None or value == "" or value == () or value == []:
            continue
        key = known[FLAGS[flag]]
        if isinstance(value, Path):
            value = str(value)
        if key.many:
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else value
        merge.put(key.dotted, value, f"flag {flag}")


def _validate(merge: _Merge) -> Settings | None:
    """One validation of what was merged; when it finds faults, the contradictions among the rest still count."""
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Settings] = TypeAdapter(Settings)
    faulty: set[str] = set()
    settings: Settings | None = None
    try:
        settings = adapter.validate_python(merge.sections())
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            section, name, *rest = error["loc"]
            # A location goes on behind the key with positions, and for a union with the member's name.
            position = "".join(f"[{each}]" for each in rest if isinstance(each, int))
            faulty.add(f"{section}.{name}")
            secret = any(key.secret for key in keys() if key.dotted == f"{section}.{name}")
            merge.fault(f"{section}.{name}{position}", _problem(error, secret=secret))
    for involved, problem in contradictions(settings or adapter.validate_python(merge.sections(without=faulty))):
        if not faulty.intersection(involved):
            merge.fault(involved[0], problem)
    return settings


def _problem(error: ErrorDetails, *, secret: bool) -> str:
    kind, given = error["type"], "(not shown)" if secret else error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    shown = repr(given) if len(repr(given)) <= 80 else f"{repr(given)[:80]}…"
    if kind == "literal_error":
        allowed = [word for word in re.findall(r"'([^']*)'", error["ctx"]["expected"]) if word]
        return f"must be one of {', '.join(allowed)}, not {shown}{_meant(str(given), allowed)}"
    if kind == "tuple_type":
        return f'must be a list of strings, such as ["…", "…"], not {shown}'
    for start, wanted in (("int", "a whole number"), ("float", "a number"), ("string", "a string"), ("path", "a path")):
        if kind.startswith(f"{start}_"):
            return f"must be {wanted}, not {shown}"
    return f"{error['msg']}, not {shown}"


def _from_text(text: str, key: Key) -> str | tuple[str, ...]:
    if not key.many:
        return text
    return tuple(part for part in (each.strip() for each in text.split(",")) if part)


def _syntax_fault(source: str, text: str, message: str) -> Fault:
    at = source
    if found := re.search(r"\(at line (\d+), column (\d+)\)$", message):
        at = f"{source}, line {found[1]}, column {found[2]}"
    elif message.endswith("(at end of document)"):
        at = f"{source}, line {text.count(chr(10)) + 1}, column {len(text) - text.rfind(chr(10))}"
    problem = re.sub(r" \(at [^()]*\)$", "", message)
    return Fault(at, f"is no TOML: {problem[:1].lower()}{problem[1:]}")


def _unknown_section(name: str, value: object, known: Mapping[str, Key]) -> str:
    if isinstance(value, dict):
        sections = dict.fromkeys(key.section for key in known.values())
        return f"there is no such section{_meant(name, sections)}; there are {', '.join(sections)}"
    return f"there is no such key outside a section{_meant(name, _toml_candidates(name, known))}"


def _toml_candidates(name: str, known: Mapping[str, Key]) -> list[str]:
    """The keys of that name in other sections, else every key."""
    same = [dotted for dotted in known if dotted.partition(".")[2] == name]
    return same or list(known)


def _meant(word: str, candidates: Iterable[str]) -> str:
    """A did-you-mean, or nothing when nothing is near."""
    near = difflib.get_close_matches(word, list(candidates), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
