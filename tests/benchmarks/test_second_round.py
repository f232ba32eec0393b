"""The benchmark of a second round in miniature: what each head is trained on, and what resumes."""

from pathlib import Path

import pytest

from benchmarks import second_round
from benchmarks.second_round import HEADS, measure, parse, rows_of
from tests.support.models.chat_templates import TEMPLATE_TEXT
from tests.support.models.tiny import save_base, tiny_base


def vowels(text: str) -> float:
    """A reward that texts of a tiny base differ in."""
    return sum(character in "aeiou" for character in text) / (1 + len(text))


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    base = tiny_base(tie_word_embeddings=False)
    base.tokenizer.chat_template = TEMPLATE_TEXT
    sizes = ["--training-prompts", "6", "--held-out-prompts", "3", "--answers", "3"]
    how = ["--new-tokens", "6", "--alphas", "1", "900", "--expansion-size", "8", "--epochs", "3"]
    folder = save_base(base, tmp_path / "base")
    return ["--work", str(tmp_path / "work"), "--base-model", str(folder), *sizes, *how]


def test_each_head_has_its_own_answers_and_all_the_same_prompts(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(parse(asked), vowels)
    assert [*found["points"]] == [*HEADS]
    for points in found["points"].values():
        assert [point["alpha"] for point in points] == [0, 1, 900]
        assert points[0]["kl"] == 0 < points[2]["kl"]
        assert points[0] == found["points"]["first"][0]
    work = tmp_path / "work"
    base, more, steered = (
        rows_of(work / f"answers-{name}.jsonl") for name in ("base", "more", "steered")
    )
    assert len(base) == len(more) == len(steered) == 18
    assert [row["prompt"] for row in base] == [row["prompt"] for row in steered]
    assert {row["alpha"] for row in base + more} == {0.0}
    assert {row["alpha"] for row in steered} == {1.0}
    for head, files in (("first", [base]), ("doubled", [base, more]), ("second", [base, steered])):
        said = {(row["prompt"], row["response"]) for rows in files for row in rows}
        for row in rows_of(work / f"pairs-{head}.jsonl"):
            best = max(vowels(text) for prompt, text in said if prompt == row["prompt"])
            assert row["chosen_score"] == best
            assert (row["prompt"], row["chosen"]) in said
    assert {*found["reward_at_kl"]["2"]} == {*HEADS}
    # What is finished is not done again; other settings are not mixed with it.
    for name in ("sample", "train", "extract"):
        monkeypatch.setattr(second_round, name, None)
    assert measure(parse(asked), vowels) == found
    with pytest.raises(SystemExit, match="other settings"):
        measure(parse([*asked, "--seed", "1"]), vowels)
