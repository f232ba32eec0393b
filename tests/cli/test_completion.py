"""What a shell is told to complete."""

import os
import shutil
import subprocess

import pytest
from click.shell_completion import BashComplete

from mav import cli
from tests.support.running.commands import done
from tests.support.running.limits import PROCESS


def completions(*words: str) -> set[tuple[str, str]]:
    """What the last of some words may become."""
    *before, incomplete = words
    asked = BashComplete(cli.main, {}, "mav", "_MAV_COMPLETE")
    return {(item.type, item.value) for item in asked.get_completions(before, incomplete)}


@pytest.mark.parametrize(
    ("shell", "says"), [("bash", "complete -o"), ("zsh", "#compdef mav"), ("fish", "--command mav")]
)
def test_a_script_for_each_shell(shell: str, says: str) -> None:
    script = done("completion", shell)
    assert says in script
    assert f"_MAV_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is not None:
        check = subprocess.run(
            [shell, "-n"],
            input=script,
            text=True,
            capture_output=True,
            timeout=PROCESS,
            env={"PATH": os.environ["PATH"]},
        )
        assert (check.returncode, check.stderr) == (0, "")


def test_commands_options_and_choices() -> None:
    assert ("plain", "extract") in completions("ex")
    assert completions("train", "--head-t") == {("plain", "--head-type")}
    assert {value for _, value in completions("train", "--head-type", "")} == {
        "mlp",
        "unembedding",
        "bottleneck",
    }


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--head", "ru"),
        ("inspect", "ru"),
        ("extract", "--dataset", "ru"),
        ("compare", "--head", "name=ru"),
        ("train", "--output-dir", "ru"),
    ],
)
def test_files_where_a_folder_or_an_id_is_meant(words: tuple[str, ...]) -> None:
    assert completions(*words) == {("file", "ru")}


def test_text_is_not_a_file() -> None:
    assert completions("generate", "--prompt", "ru") == set()
