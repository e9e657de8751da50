"""The image that the Dockerfile describes, made without a base image: nothing can be pulled in a test.

Its files are this machine's Python, the packages that p2pnode needs, p2pnode itself and busybox, laid out as the
Dockerfile lays them out; its configuration (user, entry point, health check …) is the Dockerfile's final stage, put on
top by a real `docker build`.
"""

from __future__ import annotations

import io
import py_compile
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from packaging.requirements import Requirement

from tests.programs import program

REPOSITORY: Final = Path(__file__).parents[2]
DOCKERFILE: Final = REPOSITORY / "docker" / "Dockerfile"
USER_ID: Final = 10001
DATA_DIR: Final = "var/lib/p2pnode"
VENV: Final = "opt/p2pnode"

_VERSION: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_STDLIB: Final = f"usr/local/lib/{_VERSION}"
_SITE: Final = f"{VENV}/lib/{_VERSION}/site-packages"
_LEFT_OUT: Final = re.compile(
    r"(.*/)?(site-packages|dist-packages|tests?|__pycache__|idlelib|tkinter|turtledemo|lib2to3|ensurepip|config-.*)/"
    r"|lib-dynload/_tkinter"
)
_APPLETS: Final = ("sh", "cat", "env", "id", "ip", "kill", "ls", "nc", "nslookup", "ps", "sleep", "test", "true")
_LIBRARY: Final = re.compile(r"(?:(\S+) => )?(/\S+) \(0x")
_NO_CONFIGURATION: Final = ("FROM", "COPY", "RUN", "ADD", "ARG")


def instructions(dockerfile: Path = DOCKERFILE) -> list[list[str]]:
    """The Dockerfile's instructions, `[word, rest]` each, comments dropped and continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [[word.upper(), rest.strip()] for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def configuration() -> str:
    """What the final stage says besides its files, as a Dockerfile's lines."""
    found = instructions()
    final = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    return "\n".join(f"{word} {rest}" for word, rest in found[final:] if word not in _NO_CONFIGURATION)


def write_root(target: Path) -> None:
    """The root file system as a tar file."""
    libraries: dict[str, Path] = {}
    with tarfile.open(target, "w") as tar:
        root = _Root(tar)
        python = Path(sys.executable).resolve()
        root.file(f"usr/local/bin/{_VERSION}", python, libraries)
        root.link("usr/local/bin/python", _VERSION)
        root.link("usr/local/bin/python3", _VERSION)
        stdlib = Path(sysconfig.get_path("stdlib"))
        for path in sorted(stdlib.rglob("*")):
            name = str(path.relative_to(stdlib))
            if path.is_file() and not _LEFT_OUT.match(name):
                root.file(f"{_STDLIB}/{name}", path, libraries)
        for name, path in _installed_files():
            root.file(f"{_SITE}/{name}", path, libraries)
        for path in sorted((REPOSITORY / "p2pnode").rglob("*.py")):
            root.module(f"{_SITE}/{path.relative_to(REPOSITORY)}", path)
        root.text(f"{VENV}/pyvenv.cfg", "home = /usr/local/bin\ninclude-system-site-packages = false\n")
        root.link(f"{VENV}/bin/python", f"/usr/local/bin/{_VERSION}")
        start = "from p2pnode.cli.main import main\n\nif __name__ == '__main__':\n    main()\n"
        root.text(f"{VENV}/bin/p2pnode", f"#!/{VENV}/bin/python\nimport sys\n\n{start}", mode=0o755)
        busybox = program("busybox")
        assert busybox is not None
        root.file("bin/busybox", Path(busybox).resolve(), {})
        for applet in _APPLETS:
            root.link(f"bin/{applet}", "busybox")
        for name, path in sorted(libraries.items()):
            root.file(name, path, {})
        root.text("etc/passwd", f"root:x:0:0::/root:/bin/sh\np2pnode:x:{USER_ID}:{USER_ID}::/{DATA_DIR}:/bin/sh\n")
        root.text("etc/group", f"root:x:0:\np2pnode:x:{USER_ID}:\n")
        root.directory("tmp", mode=0o1777)
        root.directory(DATA_DIR, mode=0o700, owner=USER_ID)


class _Root:
    """A tar file that gets a root file system; every file is root's unless said otherwise."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def file(self, name: str, path: Path, libraries: dict[str, Path]) -> None:
        """Add one file; the shared libraries it needs are put into `libraries`, by where they belong."""
        data = path.read_bytes()
        if data.startswith(b"\x7fELF"):
            libraries.update(_libraries(path))
        status = path.stat()
        self._add(name, data, 0o755 if status.st_mode & 0o100 else 0o644, int(status.st_mtime))
        if path.suffix == ".py":  # compiled code is good for the source of the same time only
            compiled = Path(cache_from_source(str(path)))
            if compiled.exists():
                self.file(f"{Path(name).parent}/__pycache__/{compiled.name}", compiled, libraries)

    def module(self, name: str, path: Path) -> None:
        """Add a Python module and compile it anew."""
        self._add(name, path.read_bytes(), 0o644)
        with NamedTemporaryFile() as compiled:
            py_compile.compile(
                str(path), compiled.name, f"/{name}", invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
            )
            cached = Path(cache_from_source(name))
            self._add(str(cached), Path(compiled.name).read_bytes(), 0o644)

    def text(self, name: str, text: str, *, mode: int = 0o644) -> None:
        self._add(name, text.encode(), mode)

    def link(self, name: str, target: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(info)

    def directory(self, name: str, *, mode: int, owner: int = 0) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
        self._tar.addfile(info)

    def _add(self, name: str, data: bytes, mode: int, modified: int = 0) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), mode, modified
        self._tar.addfile(info, io.BytesIO(data))


def _libraries(path: Path) -> Iterator[tuple[str, Path]]:
    """Where the dynamic linker of the image will look, and the file here."""
    found = subprocess.run(["ldd", str(path)], capture_output=True, text=True)
    for soname, file in _LIBRARY.findall(found.stdout):
        if soname:
            yield f"usr/lib/{soname}", Path(file).resolve()
        else:  # the linker itself, which every program names by its whole path
            yield file.removeprefix("/"), Path(file).resolve()


def _installed_files() -> Iterator[tuple[str, Path]]:
    """The files of p2pnode's dependencies and of its own metadata, by their names in site-packages."""
    site = sysconfig.get_path("purelib")
    for each in _needed():
        for file in each.files or ():
            path = Path(str(each.locate_file(file)))
            name = str(file)
            if name.endswith((".pth", ".pyc", "direct_url.json")) or name.startswith("..") or not path.is_file():
                continue
            assert path.is_relative_to(site), f"{path} lies outside of {site}"
            yield name, path


def _needed() -> list[Distribution]:
    """p2pnode and all that it needs to run, extras left out."""
    found: dict[str, Distribution] = {}
    waiting = ["p2pnode"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                waiting.append(re.sub(r"[-_.]+", "-", requirement.name).lower())
    return list(found.values())
