"""Answers to a file of prompts: one line out for each line in, whole or not at all, resumable."""

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mav import cli
from mav.cache_schema.errors import DataError
from mav.pipeline.decoding.alpha import AlphaSchedule, as_schedule
from mav.pipeline.decoding.files.batch_file import BatchReport, generate_file
from mav.pipeline.decoding.files.prompt_file import read_prompts
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from tests.support.models.tiny import save_base, tiny_base
from tests.support.steering.heads import write_base_and_head

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
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": "a", "alpha": "much"},
    {"prompt": "a", "alpha": True},
    {"prompt": "word " * 300},
    '{"prompt": "\\ud800 a"}',
    '{"prompt": "a", "id": "\\ud800"}',
    '{"prompt": "a", "id": NaN}',
    '{"prompt": "a", "alpha": 1' + "0" * 400 + "}",
    '{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
]
GREEDY = GenerationOptions(max_new_tokens=6)
ONE = as_schedule(1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_and_head(tmp_path_factory.mktemp("answers"))


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
    decoding: GenerationOptions = GREEDY,
    alpha: AlphaSchedule = ONE,
    batch_size: int = 2,
) -> tuple[BatchReport, list[dict[str, Any]]]:
    prompts = write(folder / "prompts.jsonl", lines)
    output = folder / "answers.jsonl"
    report = generate_file(mav, prompts, output, alpha, decoding, batch_size=batch_size)
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


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:40])
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
    mav: MAVInference, tmp_path: Path, decoding: GenerationOptions, torn: bytes
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


def test_a_torn_line_is_cut_off_before_others_follow(mav: MAVInference, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    _, want = run(mav, tmp_path / "whole", PROMPTS)
    partial = tmp_path / "answers.jsonl.partial"
    for batch in (1, 1):
        with pytest.MonkeyPatch.context() as patch:
            interrupted_after(batch, mav, patch)
            with pytest.raises(KeyboardInterrupt):
                run(mav, tmp_path, PROMPTS)
        with partial.open("ab") as file:
            file.write(b'{"line": 3, "resp')
    assert run(mav, tmp_path, PROMPTS)[1] == want


@pytest.mark.parametrize("written", [1, 20, -1])
def test_a_first_line_that_is_torn_has_nothing_to_lose(
    mav: MAVInference, tmp_path: Path, written: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(0, mav, patch)
        with pytest.raises(KeyboardInterrupt):
            run(mav, tmp_path, PROMPTS)
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:written])
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(1, mav, patch)
        with pytest.raises(KeyboardInterrupt):
            run(mav, tmp_path, PROMPTS)
    assert [len(line) > 2 for line in read(partial)] == [True] * 3
    assert run(mav, tmp_path, PROMPTS)[0].lines == 5


@pytest.mark.parametrize("seed", [7, 2**62])
def test_each_batch_has_a_seed_of_its_own(mav: MAVInference, tmp_path: Path, seed: int) -> None:
    lines = [{"prompt": "Hi"}] * 4
    sampled = replace(GREEDY, temperature=1.5, seed=seed, max_new_tokens=12)
    _, found = run(mav, tmp_path, lines, sampled)
    (first, second), (third, fourth) = (
        [line["response"] for line in found[at : at + 2]] for at in (0, 2)
    )
    assert len({first, second, third, fourth}) == 4


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
    assert "2 lines, 1 failed" in result.stdout
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


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--prompt", "Hi", "--num-beams", "2", "--stream"], "--num-beams: got 2, expected 1"),
        (["--prompt", "\udcff"], "not Unicode text"),
        *((["--prompts", line], "p.jsonl, line 3: ") for line in map(json.dumps, WRONG[2:9])),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_before_anything_is_loaded(
    tmp_path: Path, wrong: list[str], told: str
) -> None:
    if wrong[0] == "--prompts":
        wrong[1] = str(write(tmp_path / "p.jsonl", [PROMPTS[2], wrong[1]]))
    result = CliRunner().invoke(cli.main, ["generate", "--head", "/nowhere", *wrong])
    assert result.exit_code != 0
    assert told in result.stderr
    assert "nowhere" not in result.stderr


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


@pytest.mark.parametrize("changed", ["a line more", "a line less", "a wrong line mended"])
def test_answers_of_other_lines_are_not_gone_on_with(
    mav: MAVInference, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["plain", *PROMPTS]
    with monkeypatch.context() as patch:
        interrupted_after(1, mav, patch)
        with pytest.raises(KeyboardInterrupt):
            run(mav, tmp_path, lines)
    other = {
        "a line more": ["", *lines],
        "a line less": [*lines[:-2], lines[-1]],
        "a wrong line mended": [{"prompt": "plain"}, *PROMPTS],
    }[changed]
    with pytest.raises(DataError, match="answers of a run with other settings"):
        run(mav, tmp_path, other)


def test_what_the_answer_has_takes_the_place_of_what_the_line_had(
    mav: MAVInference, tmp_path: Path
) -> None:
    line = {"prompt": "Hi", "error": "old", "line": "x", "response": "old", "finish": 3, "id": 1}
    report, (good, bad) = run(mav, tmp_path, [line, {**line, "prompt": 3}])
    assert report.failed == 1
    assert "error" not in good
    assert (good["line"], good["id"]) == (1, 1)
    assert good["response"] == mav.generate("Hi", 1.0, GREEDY).response
    assert set(bad) == {"prompt", "id", "line", "error"}


def test_a_byte_order_mark_is_no_part_of_a_prompt(mav: MAVInference, tmp_path: Path) -> None:
    text = "\r\n".join(json.dumps(line) for line in PROMPTS[:2])
    (tmp_path / "prompts.jsonl").write_text(text, encoding="utf-8-sig")
    (tmp_path / "prompts.txt").write_text("Hi\n", encoding="utf-8-sig")
    assert [line.error for line in read_prompts(tmp_path / "prompts.jsonl")] == [None, None]
    assert read_prompts(tmp_path / "prompts.txt")[0].prompt == "Hi"


@pytest.mark.parametrize("text", ["[1,2]\n", "my notes", '"a"\n', '{"a": 1}\n[3]\n', "\n"])
def test_a_file_that_is_anothers_is_left_alone(
    mav: MAVInference, tmp_path: Path, text: str
) -> None:
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_text(text)
    with pytest.raises(DataError, match=r"not the answers of an interrupted run|other settings"):
        run(mav, tmp_path, PROMPTS)
    assert partial.read_text() == text


def test_two_runs_do_not_write_to_one_output(mav: MAVInference, tmp_path: Path) -> None:
    with (tmp_path / "answers.jsonl.partial").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run is writing answers there"):
            run(mav, tmp_path, PROMPTS)
    assert run(mav, tmp_path, PROMPTS)[0].lines == 5


def test_a_prompt_that_memory_does_not_suffice_for_is_an_error_line(
    mav: MAVInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mav.generate_batch

    def scarce(prompts: Any, *more: Any) -> Any:
        if any(isinstance(prompt, str) and prompt.startswith("bread") for prompt in prompts):
            raise torch.OutOfMemoryError
        return whole(prompts, *more)

    monkeypatch.setattr(mav, "generate_batch", scarce)
    report, found = run(mav, tmp_path, PROMPTS)
    assert report.failed == 1
    assert "out of memory" in found[3]["error"]
