"""The Dockerfile of the examples, as far as it can be checked without Docker."""

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from mav import cli
from tests.docs.world import ROOT, World, free_port
from tests.support.running.limits import PROCESS

DOCKERFILE: Final = ROOT / "examples" / "Dockerfile"
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
KNOWN: Final = set(
    "ARG FROM RUN ENV COPY USER WORKDIR EXPOSE HEALTHCHECK ENTRYPOINT CMD".split()  # noqa: SIM905
)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """Its arguments, of the JSON form or of the other."""
        text = self.rest[self.rest.index("[") :] if '["' in self.rest else None
        return list(json.loads(text)) if text else shlex.split(self.rest)


def instructions() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if line[:1] != "#"]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = [line.partition(" ") for line in joined.splitlines() if line]
    return [Instruction(name=name, rest=rest.strip()) for name, _, rest in split]


def of(name: str) -> list[Instruction]:
    return [each for each in instructions() if each.name == name]


def copied() -> dict[str, str]:
    """Return what is copied: paths of the repository and where each goes."""
    found: dict[str, str] = {}
    for *sources, to in (each.words for each in of("COPY")):
        into = to if to.endswith("/") else None
        found |= {source: f"{into}{Path(source).name}" if into else to for source in sources}
    return found


def test_instructions_are_known_and_begin_with_a_base() -> None:
    names = [each.name for each in instructions()]
    assert set(names) == KNOWN
    assert names[:2] == ["ARG", "FROM"]
    assert of("FROM")[0].rest == "${IMAGE}"


def test_what_is_copied_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(Path(source).parts[0], pattern) for pattern in kept), source
    assert set(kept) == {Path(source).parts[0] for source in copied()}


def test_what_is_copied_suffices_to_install() -> None:
    there = {name: to for name, to in copied().items() if Path(name).parts[0] != "constraints"}
    files = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    links = {path.resolve().name for path in (ROOT / "mav").iterdir() if path.is_symlink()}
    assert files | links | {"mav"} == set(there)
    assert there == {name: f"/opt/source/{name}" for name in there}


def test_what_is_installed_is_a_known_extra_under_known_constraints() -> None:
    (install,) = (each for each in of("RUN") if "/opt/source[" in each.rest)
    (extras,) = re.findall(r"/opt/source\[([\w,-]+)\]", install.rest)
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    for each in of("RUN"):
        for path in re.findall(r"--constraint (\S+)", each.rest):
            assert path in copied().values() or Path(path).name == "tested.txt"
    # A base that has this Python at least: Debian 12, Ubuntu 24.04.
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_it_does_not_run_as_root() -> None:
    (user,) = of("USER")
    created = " ".join(each.rest for each in of("RUN"))
    assert re.search(rf"useradd .*\b{user.rest}\b", created)
    names = [each.name for each in instructions()]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name == "RUN")


def test_the_command_is_one_of_this_program() -> None:
    (entry,) = of("ENTRYPOINT")
    (words,) = (each.words for each in of("CMD"))
    assert entry.words == list(PROJECT["project"]["scripts"])
    name, *args = words
    command = cli.main.commands[name]
    assert isinstance(command, click.Command)
    context = command.make_context(name, args)
    assert context.params["host"] == "0.0.0.0"
    assert str(context.params["port"]) == of("EXPOSE")[0].rest
    key = next(option for option in command.params if option.name == "api_key")
    assert f"--env {key.envvar}=" in DOCKERFILE.read_text("utf-8")


def health(port: int) -> int:
    """Run the health check against a port; return its exit code."""
    (check,) = of("HEALTHCHECK")
    program, *words = check.words
    assert program == "python"
    changed = [word.replace(f":{of('EXPOSE')[0].rest}/", f":{port}/") for word in words]
    assert changed != words
    return subprocess.run([sys.executable, *changed], stderr=-3, timeout=PROCESS).returncode


def test_the_health_check_tells_a_server_from_none(trained: World, tmp_path: Path) -> None:
    world, port = trained.copy(tmp_path / "docs"), free_port()
    assert health(port) == 1
    (words,) = (each.words for each in of("CMD"))
    changed = {"/head": "runs/head", of("EXPOSE")[0].rest: str(port)}
    serve = shlex.join(["mav", *(changed.get(word, word) for word in words)])
    with world.running(f"MAV_API_KEY=secret {serve}", f"http://127.0.0.1:{port}/health"):
        assert health(port) == 0
