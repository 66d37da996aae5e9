"""Debian packages as folders, and their descriptions: downloaded by apt-get and unpacked, nothing is installed."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path


def unpacked(package: str, cache: Path) -> Path:
    """Return the folder with the files of a package, in `cache` after the first time."""
    folder = cache / package
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            run("apt-get", "-qq", "download", package, directory=temporary)
            (archive,) = Path(temporary).glob("*.deb")
            run("dpkg", "-x", archive.name, "content", directory=temporary)
            shutil.move(Path(temporary) / "content", folder)
    return folder


def library_path(packages: Iterable[str], cache: Path) -> str:
    """Return the LD_LIBRARY_PATH of packages: theirs, and what they depend on, as a bare machine may lack any of it."""
    only = (f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"))
    listed = run("apt-cache", "depends", "--recurse", *only, *packages).splitlines()
    # Names of packages are at the start of a line. The C library is that of the running system.
    names = [line for line in listed if line[0].isalnum() and line != "libc6"]
    folders = {library.parent.absolute() for name in names for library in unpacked(name, cache).rglob("*.so*")}
    return ":".join(sorted(map(str, folders)))


def package_lists(languages: tuple[str, ...], cache: Path) -> list[str]:
    """Return apt's lists of packages: one, and one of their descriptions in each of the languages ("en", "de", ...)."""
    folder = cache.absolute() / f"lists-{'-'.join(languages)}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            Path(temporary, "partial").mkdir()
            options = (
                f"Dir::State::lists={temporary}",
                f"Acquire::Languages={','.join(languages)}",
            )
            run(
                "apt-get",
                "-qq",
                "update",
                *(f"--option={option}" for option in options),
            )
            shutil.copytree(temporary, folder)
    names = [
        "main_binary-*_Packages*",
        *(f"main_i18n_Translation-{language}*" for language in languages),
    ]
    # The largest is that of the distribution, the others are of its updates.
    files = [max(folder.glob(f"*{name}"), key=lambda path: path.stat().st_size) for name in names]
    return [run("/usr/lib/apt/apt-helper", "cat-file", str(path)) for path in files]


def run(*command: str, directory: str | Path | None = None) -> str:
    """Run a command, and return what it printed."""
    finished = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} failed (apt-get update first?): {finished.stderr.strip()}")
    return finished.stdout
