"""Answers to a file of prompts: one line out for each line in, whole or not at all, resumable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import cli
from cache_schema.errors import DataError
from pipeline.alpha import AlphaSchedule, as_schedule
from pipeline.answers_file import AnswersReport, answer_file
from pipeline.decoding import Decoding
from pipeline.generate import MAVInference
from tests.test_generate import write_head
from tests.tiny import make_cache, save_base, tiny_base

PROMPTS: list[Any] = [
    {"id": "a", "prompt": "Hi"},
    {"id": "b", "prompt": "How do I mend a kite in three days?", "alpha": -2.0},
    {"id": "c", "messages": [{"role": "user", "content": "Who paints the door?"}]},
    {"id": "d", "prompt": "bread " * 12, "alpha": "0:3,4:0"},
    {"id": "e", "prompt": "Two chairs"},
]
WRONG: list[Any] = [
    "plain",
    [1],
    {"id": "f"},
    {"prompt": 3},
    {"prompt": "a", "messages": []},
    {"messages": []},
    {"messages": ["a"]},
    {"messages": [{"role": "king", "content": "a"}]},
    {"prompt": "a", "alpha": "much"},
    {"prompt": "a", "alpha": True},
    {"prompt": "word " * 300},
]
GREEDY = Decoding(max_new_tokens=6)
ONE = as_schedule(1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answers")
    save_base(tiny_base(), root / "base")
    write_head(root / "head", make_cache(root, tiny_base(), pairs=8))
    return root


@pytest.fixture
def mav(folder: Path) -> MAVInference:
    return MAVInference(str(folder / "head"), tiny_base())


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(
    mav: MAVInference,
    folder: Path,
    lines: list[Any],
    decoding: Decoding = GREEDY,
    alpha: AlphaSchedule = ONE,
    batch_size: int = 2,
) -> tuple[AnswersReport, list[dict[str, Any]]]:
    prompts = write(folder / "prompts.jsonl", lines)
    output = folder / "answers.jsonl"
    report = answer_file(mav, prompts, output, alpha, decoding, batch_size=batch_size)
    return report, read(output)


def test_each_line_gets_its_own_answer_in_the_order_of_the_prompts(
    mav: MAVInference, tmp_path: Path
) -> None:
    report, found = run(mav, tmp_path, PROMPTS)
    assert (report.lines, report.failed) == (5, 0)
    for line, (asked, got) in enumerate(zip(PROMPTS, found, strict=True)):
        alpha = asked.get("alpha", 1.0)
        schedule = AlphaSchedule.parse(alpha) if isinstance(alpha, str) else as_schedule(alpha)
        want = mav.generate(asked.get("prompt", asked.get("messages")), schedule, GREEDY)
        assert got == {
            **asked,
            "line": 2 * line + 1,
            "alpha": alpha,
            "response": want.response,
            "new_tokens": len(want.tokens),
            "finish": want.finish,
        }
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob("*.whole"))


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_line_has_an_error_and_no_text(
    mav: MAVInference, tmp_path: Path, wrong: Any
) -> None:
    report, found = run(mav, tmp_path, [PROMPTS[0], wrong, PROMPTS[1]])
    assert (report.lines, report.failed) == (3, 1)
    assert [("error" in line, "response" in line) for line in found] == [
        (False, True),
        (True, False),
        (False, True),
    ]


def interrupted_after(batches: int, mav: MAVInference, patch: pytest.MonkeyPatch) -> list[int]:
    """Let some batches through, then break off; return a list of the sizes of those decoded."""
    decoded: list[int] = []
    whole = mav.generate_batch

    def some(prompts: Any, *args: Any) -> Any:
        if len(decoded) == batches:
            raise KeyboardInterrupt
        decoded.append(len(prompts))
        return whole(prompts, *args)

    patch.setattr(mav, "generate_batch", some)
    return decoded


@pytest.mark.parametrize("torn", [b"", b'{"line": 3, "resp', b'{"line"'])
@pytest.mark.parametrize(
    "decoding", [GREEDY, replace(GREEDY, temperature=1.5, seed=3)], ids=["greedy", "sampled"]
)
def test_what_goes_on_ends_as_what_was_never_interrupted(
    mav: MAVInference, tmp_path: Path, decoding: Decoding, torn: bytes
) -> None:
    lines = [*PROMPTS, WRONG[0]]
    (tmp_path / "whole").mkdir()
    _, want = run(mav, tmp_path / "whole", lines, decoding)
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(1, mav, patch)
        with pytest.raises(KeyboardInterrupt):
            run(mav, tmp_path, lines, decoding)
    assert not (tmp_path / "answers.jsonl").exists()
    with (tmp_path / "answers.jsonl.partial").open("ab") as file:
        file.write(torn)
    with pytest.MonkeyPatch.context() as patch:
        decoded = interrupted_after(9, mav, patch)
        _, got = run(mav, tmp_path, lines, decoding)
    assert decoded == [2, 1], "the first batch was decoded again"
    assert got == want


def test_a_run_with_other_settings_does_not_go_on(mav: MAVInference, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(1, mav, patch)
        with pytest.raises(KeyboardInterrupt):
            run(mav, tmp_path, PROMPTS)
    before = (tmp_path / "answers.jsonl.partial").read_bytes()
    for changes, told in (
        ({"alpha": as_schedule(2.0)}, "alpha: '1', now '2'"),
        ({"decoding": replace(GREEDY, max_new_tokens=7)}, "max_new_tokens: 6, now 7"),
        ({"batch_size": 3}, "batch_size: 2, now 3"),
        ({"lines": PROMPTS[:-1]}, "prompts: "),
    ):
        settings: dict[str, Any] = {"lines": PROMPTS, **changes}
        with pytest.raises(DataError, match=told):
            run(mav, tmp_path, **settings)
        assert (tmp_path / "answers.jsonl.partial").read_bytes() == before


def test_answers_that_are_there_are_kept(mav: MAVInference, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        run(mav, tmp_path, PROMPTS)
    assert (tmp_path / "answers.jsonl").read_text() == "mine"


def test_a_batch_that_does_not_fit_is_decoded_in_halves(
    mav: MAVInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    _, want = run(mav, tmp_path / "whole", PROMPTS, batch_size=5)
    whole, sizes = mav.generate_batch, []

    def small_memory(prompts: Any, *args: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return whole(prompts, *args)

    monkeypatch.setattr(mav, "generate_batch", small_memory)
    _, got = run(mav, tmp_path, PROMPTS, batch_size=5)
    assert sizes == [5, 2, 3, 1, 2]
    assert got == want


def mav_command(folder: Path, *args: object) -> Any:
    options = ["--head", folder / "head", "--base-model", folder / "base", "--dtype", "float32"]
    return CliRunner().invoke(cli.main, list(map(str, ["generate", *options, *args])))


def test_the_command_tells_of_errors_and_exits_with_1(folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [PROMPTS[0], "plain"])
    args = ["--prompts", prompts, "--output", tmp_path / "a.jsonl", "--max-new-tokens", 4]
    result = mav_command(folder, *args)
    assert result.exit_code == 1, result.output
    assert "2 lines, 1 of them an error" in result.stdout
    again = mav_command(folder, *args)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    fine = write(tmp_path / "fine.jsonl", PROMPTS[:2])
    args = ["--prompts", fine, "--output", tmp_path / "b.jsonl", "--max-new-tokens", 4, "--json"]
    result = mav_command(folder, *args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["lines"] == 2


@pytest.mark.parametrize(
    "args",
    [
        ["--prompt", "Hi", "--output", "a.jsonl"],
        ["--prompts", "p.jsonl", "--output", "a.jsonl", "--alphas", "0,1"],
        ["--prompts", "p.jsonl", "--output", "a.jsonl", "--stream"],
        ["--prompts", "p.jsonl", "--output", "a.jsonl", "--batch-size", "0"],
        ["--prompts", "p.jsonl", "--demo-switching", "base"],
        ["--prompt", "Hi", "--num-beams", "2", "--stream"],
        ["--prompt", "Hi", "--compile"],
    ],
    ids=str,
)
def test_options_that_do_not_go_together(folder: Path, args: list[str]) -> None:
    assert mav_command(folder, *args).exit_code == 2


def test_switching_is_shown_on_two_bases(folder: Path, tmp_path: Path) -> None:
    other = save_base(tiny_base(num_hidden_layers=6, hidden_size=48, seed=3), tmp_path / "other")
    for args, told in (
        (["--demo-switching", other], "the head reads layers [1, 3, 6]"),
        (["--demo-switching"], "every weight changed at random by 2%"),
    ):
        result = mav_command(folder, "--max-new-tokens", 4, *args)
        assert result.exit_code == 0, result.output
        assert told in result.stdout
        assert result.stdout.count("alpha 0") == 2
