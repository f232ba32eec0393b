"""`--steer-above` as a user gives it, and the share of tokens that is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.commands import done, mav, refused
from tests.support.steering.heads import write_head

USAGE = 2


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What names head and base."""
    folder = tmp_path_factory.mktemp("limited")
    base = tiny_base(tie_word_embeddings=False)
    head = write_head(folder / "head", make_cache(folder / "cached", base, pairs=4))
    saved = save_base(base, folder / "base")
    return ["--head", head, "--base-model", saved, "--dtype", "float32", "--device", "cpu"]


def test_the_share_is_told_beside_an_answer_and_in_json(line: list[Any]) -> None:
    asked = ["generate", *line, "--prompt", "Hi", "--max-new-tokens", 6]
    for above, steered in (("0", 6), ("100", 0)):
        told = f"{steered} of 6 tokens steered ({steered * 100 // 6} %)"
        for more in ([], ["--stream"]):
            assert told in mav(*asked, "--steer-above", above, *more).stderr
        found = json.loads(done(*asked, "--steer-above", above, "--json"))
        assert (found["steered_tokens"], len(found["tokens"])) == (steered, 6)
    assert "steered" not in mav(*asked).stderr
    assert done(*asked, "--steer-above", "100") == done(*asked, "--alpha", "0")


def test_a_file_tells_the_share_of_all_answers(line: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Hi\nNo.\n")
    output = tmp_path / "out.jsonl"
    asked = ["generate", *line, "--prompts", tmp_path / "in.txt", "--output", output]
    found = done(*asked, "--max-new-tokens", 4, "--steer-above", 0)
    assert f"{output}: 2 lines; 8 of 8 tokens steered (100 %)" in found


def test_a_comparison_has_a_column_of_shares(line: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Hi\nHow do I mend a kite?\n")
    asked = ["compare", *line, "--prompts", tmp_path / "in.txt", "--max-new-tokens", 4]
    found = done(*asked, "--alphas", "0,2", "--steer-above", 0.5, "--output", tmp_path / "a")
    assert "steered %" in found
    assert "greedy, steered above 0.5 nats, at most 4 new tokens" in found
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["decoding"]["steer_above"] == 0.5
    base, steered = summary["systems"]
    answers = (tmp_path / "a" / "answers" / "alpha=2.jsonl").read_text().splitlines()[1:]
    shares = [line["steered_tokens"] / line["new_tokens"] for line in map(json.loads, answers)]
    assert base["steered"]["value"] == 0
    assert steered["steered"]["value"] == pytest.approx(sum(shares) / 2)
    assert "steered %" in (tmp_path / "a" / "page.html").read_text()
    plain = done(*asked, "--alphas", "0,2", "--output", tmp_path / "b")
    assert "steered" not in plain
    # Answers that were steered so are told so beside those of another run.
    files = ["--with", f"limited={tmp_path / 'a' / 'answers' / 'alpha=2.jsonl'}"]
    both = done("compare", "--prompts", tmp_path / "in.txt", *files, "--output", tmp_path / "c")
    assert "steered %" in both


def test_what_is_no_limit_is_one_line(line: list[Any]) -> None:
    asked = ["generate", *line, "--prompt", "Hi", "--steer-above"]
    assert "--steer-above: got -1" in refused(USAGE, *asked, "-1")
    compiled = ["--compile", "--cache-implementation", "static"]
    assert "--compile: got True with --steer-above" in refused(USAGE, *asked, "1", *compiled)
