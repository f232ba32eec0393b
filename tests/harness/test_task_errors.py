"""Tasks that cannot be read or run end in one line, and what they lose is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.running.commands import mav, refused

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("quick_lm_eval")]

CHOICE = """
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{a}}"
doc_to_target: l
metric_list: [{metric: acc}]
"""
WRITING = """
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a[0]}}"
metric_list: [{metric: exact_match}]
"""
DOCUMENT: dict[str, Any] = {"q": "Hi", "a": ["x", "y"], "l": 0}


def line(head: str, base: str, folder: Path, *more: object) -> list[object]:
    """The command for the task `t` of a folder."""
    return [
        *["harness", "--head", head, "--base-model", base, "--include-path", folder],
        *["--tasks", "t", "--alphas", "0,1", "--dtype", "float32", "--device", "cpu", *more],
    ]


def task_in(folder: Path, text: str, *documents: Any, split: str = "test") -> Path:
    """Write the task `t` with its documents; return the folder."""
    data = folder / "d.jsonl"
    data.write_text("".join(f"{json.dumps(one)}\n" for one in documents), encoding="utf-8")
    (folder / "t.yaml").write_text(
        f"task: t\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\n"
        f"test_split: {split}\n{text.lstrip()}",
        encoding="utf-8",
    )
    return folder


@pytest.mark.parametrize(
    ("text", "documents", "told"),
    [
        (CHOICE, [], "there are no documents"),
        (CHOICE.replace("{{q}}", "{{gone}}"), [DOCUMENT], "'gone' is undefined"),
        (CHOICE.replace("{{q}}", "{{q"), [DOCUMENT], "unexpected end of template"),
        (CHOICE, [{**DOCUMENT, "l": 7}], "IndexError: list index out of range"),
        (CHOICE.replace("acc", "gone"), [DOCUMENT], "gone not found in the evaluate library"),
        (CHOICE + "fewshot_split: gone\n", [DOCUMENT], "KeyError: 'gone'"),
        (CHOICE + "process_docs: !function gone.f\n", [DOCUMENT], "import module 'gone'"),
        (CHOICE + "gone: 3\n", [DOCUMENT], "unexpected keyword argument 'gone'"),
    ],
)
def test_what_cannot_be_read(
    head: str, base: str, tmp_path: Path, text: str, documents: list[Any], told: str
) -> None:
    message = refused(1, *line(head, base, task_in(tmp_path, text, *documents)))
    assert message.startswith("t: the task or its documents cannot be read: ")
    assert told in message
    assert len(message.splitlines()) == 1


def test_documents_that_are_not_there_or_no_json(head: str, base: str, tmp_path: Path) -> None:
    folder = task_in(tmp_path, CHOICE, DOCUMENT)
    (folder / "d.jsonl").write_text("{", encoding="utf-8")
    assert "d.jsonl" in refused(1, *line(head, base, folder))
    (folder / "d.jsonl").unlink()
    result = mav(*line(head, base, folder))
    (told,) = result.stderr.splitlines()
    assert told.startswith("Error: t: the task or its documents cannot be read: FileNotFoundError:")
    assert "d.jsonl" in told


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        (WRITING, [], "AssertionError: Invalid configuration: requested max tokens"),
        (CHOICE + "unsafe_code: true\n", [], "ValueError: Attempted to run task: t which is"),
        (CHOICE, ["--num-fewshot", "3"], "ValueError: Sample larger than population"),
        (CHOICE.replace("acc", "acc, aggregation: gone"), [], "TypeError: 'NoneType' object"),
    ],
)
def test_what_cannot_be_run(
    head: str, base: str, tmp_path: Path, text: str, more: list[str], told: str
) -> None:
    output = tmp_path / "found.json"
    folder = task_in(tmp_path, text, DOCUMENT)
    message = refused(1, *line(head, base, folder, *more, "--output", output))
    assert message.startswith(f"t: cannot be run: {told}")
    assert len(message.splitlines()) == 1
    assert not output.exists()


def test_running_out_of_memory_is_told(
    head: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("lm_eval.evaluator.evaluate", no_memory)
    message = refused(1, *line(head, base, task_in(tmp_path, CHOICE, DOCUMENT)))
    assert message == "t: out of memory. Use a smaller --batch-size, or --quantize.\n"


@pytest.mark.parametrize(
    ("text", "told"), [("a: [", "cannot be read: while parsing"), ("hello", "describes no task")]
)
def test_a_file_that_lm_eval_leaves_out_is_named(
    head: str, base: str, tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    message = refused(2, *line(head, base, tmp_path))
    assert message.startswith("--tasks: got t, expected a task of lm-eval, or of a folder given")
    assert f"; {tmp_path}/t.yaml {told}" in message


def test_what_is_shortened_or_has_no_right_answer_is_told_once(
    head: str, base: str, tmp_path: Path
) -> None:
    long = [{**DOCUMENT, "q": f"{word} " * 300} for word in ("long", "other", "third")]
    folder = task_in(tmp_path, CHOICE, *long, {**DOCUMENT, "l": "neither"})
    result = mav(*line(head, base, folder, "--quiet"))
    assert result.exit_code == 0
    told = [said for said in result.stderr.splitlines() if said.startswith("lm-eval: ")]
    assert len(told) == 2
    assert "exceeds model's maximum length" in told[0]
    assert told[0].endswith("(and 2 more of the kind)")
    assert told[1].startswith("lm-eval: Label index was not in within range")


def test_two_tasks_of_one_name_are_told(head: str, base: str, tmp_path: Path) -> None:
    task_in(tmp_path, CHOICE, DOCUMENT)
    (tmp_path / "u.yaml").write_bytes((tmp_path / "t.yaml").read_bytes())
    result = mav(*line(head, base, tmp_path, "--quiet"))
    assert result.exit_code == 0
    assert "lm-eval: Duplicate task name 't' found" in result.stderr
