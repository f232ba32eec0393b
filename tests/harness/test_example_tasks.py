"""The tasks of `examples/tasks`."""

import json
from pathlib import Path

import pytest

from benchmarks.minimal_pairs import our_pairs
from tests.support.running.commands import done

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "examples" / "tasks"


def test_grammar_is_the_minimal_pairs() -> None:
    rows = map(json.loads, (TASKS / "grammar.jsonl").read_text(encoding="utf-8").splitlines())
    found = [(one["phenomenon"], one["right"], *one["sentences"]) for one in rows]
    for (phenomenon, right, *sentences), pair in zip(found, our_pairs(), strict=True):
        assert (phenomenon, sentences[right], sentences[1 - right]) == (
            *(pair.phenomenon, pair.good, pair.bad),
        )
    assert {right for _, right, *_ in found} == {0, 1}


@pytest.mark.filterwarnings("default")
def test_they_run(head: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(ROOT)
    tasks = ["--tasks", "grammar,prose,capitals", "--include-path", "examples/tasks"]
    options = ["--limit", 2, "--alphas", "0,1", "--device", "cpu", "--dtype", "float32", "--json"]
    found = json.loads(done("harness", "--head", head, "--base-model", base, *tasks, *options))
    assert {(one["task"], one["metric"]) for one in found["figures"]} == {
        ("grammar", "acc"),
        ("prose", "word_perplexity"),
        ("prose", "bits_per_byte"),
        ("capitals", "exact_match"),
    }
