"""What is installed: one package, whose place no file of a user's own takes, whatever its name."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.support.models.tiny import save_base, tiny_base, write_rows
from tests.support.running.limits import PROCESS

ROOT: Final = Path(__file__).parents[1]
SOURCES: Final = (
    *("mav", "pipeline", "cache_schema", "cli_commands", "cli.py"),
    *("pyproject.toml", "README.md", "LICENSE"),
)


def run(*command: object, cwd: Path, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PROCESS,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, as building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source, to = ROOT / name, copy / name
        shutil.copytree(source, to, symlinks=True) if source.is_dir() else shutil.copy2(source, to)
    asked = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*asked, "--wheel-dir", copy / "wheels", copy, cwd=copy)
    (found,) = (copy / "wheels").glob("mav_align-*.whl")
    return found


def test_it_holds_one_package_and_all_of_it(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"mav"}
    here = {
        f"mav/{path.relative_to(ROOT)}"
        for top in ("pipeline", "cache_schema", "cli_commands")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here <= names
    assert {"mav/py.typed", "mav/cli.py", "mav/__main__.py"} <= names


def test_the_line_runs_beside_files_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(installed)
    work.mkdir()
    for name in ("pipeline", "cache_schema", "cli", "cli_commands"):
        (work / f"{name}.py").write_text("raise RuntimeError('this is the user\\'s own file')\n")
    base = save_base(tiny_base(), work / "base")
    rows = write_rows(work / "rows.jsonl", 24)

    assert "mav, version" in run("-m", "mav", "--version", cwd=work, PYTHONPATH=str(installed))
    extract = ("extract", "--base-model", base, "--dataset", rows, "--output", "cache")
    options = ("--expansion-size", 16, "--report-to", "none", "--eval-fraction", 0.3)
    generate = ("--head", "head", "--prompt", "Hi", "--max-new-tokens", 2, "--device", "cpu")
    # Commands share a process, which takes seconds to import what they need.
    commands: list[list[object]] = [
        [*extract, "--device", "cpu"],
        ["train", "--cache", "cache", "--output-dir", "head", *options],
        ["evaluate", "--head", "head", "--cache", "cache"],
        ["generate", *generate],
    ]
    code = (
        "import json, sys, mav.cli\nprint(mav.cli.__file__)\n"
        "for args in json.loads(sys.argv[1]): mav.cli.main(args, standalone_mode=False)"
    )
    words = json.dumps([[str(word) for word in command] for command in commands])
    said = run("-c", code, words, cwd=work, PYTHONPATH=str(installed))
    assert said.splitlines()[0] == str(installed / "mav" / "cli.py")
    assert "reward accuracy" in said


SCRIPT: Final = """
from typing import assert_type
from mav import (
    DataError, DataSource, EvaluateOptions, Evaluation, ExtractOptions, Generation, MAVInference,
    TrainOptions, evaluate, extract, train,
)
try:
    pairs = DataSource(id="pairs.jsonl")
    extract(ExtractOptions(base_model="base", data=pairs, output="cache"))
except DataError as error:
    raise SystemExit(str(error)) from error
train(TrainOptions(cache="cache", output_dir="head"))
assert_type(evaluate(EvaluateOptions(head="head", cache="cache", alphas=[1.0])), Evaluation)
assert_type(MAVInference("head").generate("Hi", alpha=1.0), Generation)
"""


@pytest.mark.slow
def test_a_users_script_is_checked_against_the_types_of_what_is_installed(
    wheel: Path, tmp_path: Path
) -> None:
    run("-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = tmp_path / "env" / "bin" / "python"
    (tmp_path / "script.py").write_text(SCRIPT)
    check = ("-m", "mypy", "--strict", "--python-executable", python, "script.py")
    assert "Success" in run(*check, cwd=tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT.replace("alpha=1.0", "strength=1.0"))
    wrong = subprocess.run([sys.executable, *map(str, check)], cwd=tmp_path, capture_output=True)
    assert b'Unexpected keyword argument "strength"' in wrong.stdout
