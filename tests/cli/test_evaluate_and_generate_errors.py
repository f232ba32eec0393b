"""Options and prompts that `mav evaluate` and `mav generate` refuse."""

from pathlib import Path

import pytest

from tests.support.running.commands import refused
from tests.support.running.refusals import DATA, USAGE, Args, World, evaluate_args, generate_args


@pytest.mark.parametrize(
    ("alphas", "got"), [("0,x", "'x'"), ("", "''"), ("0,,1", "''"), ("1,nan", "'nan'")]
)
def test_alphas_that_are_no_numbers(world: World, alphas: str, got: str) -> None:
    for args in (
        evaluate_args(world.head, world.cache),
        [*generate_args(world.head), "--prompt", "Hi"],
    ):
        message = refused(USAGE, *args, "--alphas", alphas)
        assert "Invalid value for '--alphas'" in message
        assert f"got {got}, expected a finite number such as 0.5" in message


@pytest.mark.parametrize("alpha", ["abc", "nan", "inf", "-inf", "", "1,2"])
def test_alpha_that_is_no_number(world: World, alpha: str) -> None:
    message = refused(USAGE, *generate_args(world.head), "--prompt", "Hi", "--alpha", alpha)
    assert "Invalid value for '--alpha'" in message
    assert f"got '{alpha}', expected a finite number such as 1.5" in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give either --prompt or --prompts"),
        (["--prompt", "Hi", "--prompts", "x.txt"], "give either --prompt or --prompts"),
        (["--prompt", "Hi", "--prompt", "Ho"], "--prompt is given 2 times, but takes one value"),
        (["--prompt", "Hi", "--alpha", 0, "--alpha", 1], "--alpha is given 2 times"),
        (["--prompt", "Hi", "--stream", "--json"], "--stream prints text as it is generated"),
        (["--prompt", "Hi", "--max-new-tokens", 0], "--max-new-tokens: got 0, expected at least 1"),
        (["--prompt", "Hi", "--temperature", -1], "--temperature: got -1.0, expected 0 to 10000"),
        (["--prompt", "Hi", "--temperature", "nan"], "expected a finite number"),
        (["--prompt", "Hi", "--top-k", "-1"], "--top-k: got -1, expected at least 0"),
        (["--prompt", "Hi", "--min-p", "2"], "--min-p: got 2.0, expected 0 to 1"),
        (
            ["--prompt", "Hi", "--repetition-penalty", "0"],
            "--repetition-penalty: got 0.0, expected more than 0",
        ),
        (
            ["--prompt", "Hi", "--seed", "99999999999999999999"],
            "--seed: got 99999999999999999999, expected -4611",
        ),
        (["--prompt", "Hi", "--top-p", 0], "--top-p: got 0.0, expected more than 0, at most 1"),
        (["--prompt", "Hi", "--top-p", 1.5], "--top-p: got 1.5, expected more than 0, at most 1"),
        (["--prompt", "Hi", "--device", "warp"], "--device: got 'warp'"),
        (["--prompt", "Hi", "--seed", "x"], "'x' is not a valid integer"),
    ],
)
def test_generate_options_that_cannot_be(world: World, options: Args, told: str) -> None:
    assert told in refused(USAGE, *generate_args(world.head), *options)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("nowhere.txt", None, "cannot be read"),
        ("empty.txt", "\n \n", "no prompt in it"),
        ("a.jsonl", '{"prompt": "a"}\nplain\n', "line 2: got 'plain', expected JSON"),
        ("a.jsonl", '\n{"text": "a"}\n', 'line 2: got \'{"text": "a"}\', expected either'),
        ("a.jsonl", '{"prompt": 3}\n', "expected either 'prompt', a text, or 'messages'"),
        ("a.jsonl", "[1]\n", "line 1: got '[1]', expected an object"),
    ],
)
def test_prompts_that_cannot_be_read(
    world: World, tmp_path: Path, name: str, text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    message = refused(DATA, *generate_args(world.head), "--prompts", tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert told in message


def test_plot_of_an_unknown_kind(world: World, tmp_path: Path) -> None:
    args = [*evaluate_args(world.head, world.cache), "--alphas", 1]
    message = refused(USAGE, *args, "--plot", tmp_path / "plot.docx")
    assert message.startswith(f"--plot: got {tmp_path / 'plot.docx'}, ")
    assert list(tmp_path.iterdir()) == []


def test_plot_into_no_folder(world: World, tmp_path: Path) -> None:
    args = [*evaluate_args(world.head, world.cache), "--alphas", 1]
    message = refused(USAGE, *args, "--plot", tmp_path / "nowhere" / "plot.png")
    assert message.startswith(f"{tmp_path / 'nowhere' / 'plot.png'}: No such file or directory")
