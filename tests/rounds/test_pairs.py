"""Pairs of answers in files: scored, counted, and read as any other pairs are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.comparison.reward import RewardModel
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.rounds.options import PairOptions
from mav.pipeline.rounds.pairs import make_pairs
from tests.support.steering.comparisons import save_reward_model

TRANSCRIPT = "\n\nHuman: Is rain wet?\n\nAssistant:"
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Name a tree."},
]
SCORED: list[tuple[Any, str, float | None]] = [
    ("Hi", "Hello.", 1.0),
    ("Hi", "Go away.", -2.0),
    ("Hi", "Yes?", 0.5),
    (TRANSCRIPT, "Yes, it is.", 3.0),
    (TRANSCRIPT, "No.", 2.5),
    (TALK, "Oak.", 0.0),
    (TALK, "What?", -1.0),
    ("Same?", "One.", 1.0),
    ("Same?", "Two.", 1.0),
    ("Alone?", "I am.", 1.0),
    ("Alone?", "Nobody scored this.", None),
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rows = [{"prompt": prompt, "response": text} for prompt, text, _ in SCORED]
    rows += [
        {"prompt": "Hi", "response": "Hello."},
        {"prompt": "Hi", "response": "  "},
        {"prompt": "Hi", "error": "too long"},
    ]
    return write(tmp_path / "samples.jsonl", rows)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "response": text, "score": score} for prompt, text, score in SCORED
    ]
    # In any order, with a prompt in another form, and scores of answers that nobody asks for.
    rows[3]["prompt"] = [{"role": "user", "content": "Is rain wet?"}]
    rows.append({"prompt": "Other", "response": "Else.", "score": 9})
    return write(tmp_path / "scores.jsonl", rows[::-1])


def options(samples: Path, **more: Any) -> PairOptions:
    return PairOptions(samples=(str(samples),), output=samples.with_name("pairs.jsonl"), **more)


def test_the_best_and_the_worst_are_a_pair_that_extraction_reads(
    samples: Path, scores: Path
) -> None:
    asked = options(samples, scores=scores)
    report = make_pairs(asked)
    found = rows_of(asked.output)
    assert [(row["chosen_score"], row["rejected_score"]) for row in found] == [
        (1.0, -2.0),
        (3.0, 2.5),
        (0.0, -1.0),
    ]
    assert (report.prompts, report.pairs) == (5, 3)
    assert report.margin == pytest.approx(4.5 / 3)
    assert report.answers_left_out == {"failed": 1, "empty": 1, "repeated": 1, "unscored": 1}
    assert report.prompts_left_out == {"tie": 1, "one_answer": 1}
    counts = ReadCounts()
    read = [*read_pairs(DataSource(id=str(asked.output)), counts)]
    assert not counts.dropped
    assert [(pair.chosen.strip(), pair.rejected.strip()) for pair in read] == [
        ("Hello.", "Go away."),
        ("Yes, it is.", "No."),
        ("Oak.", "What?"),
    ]
    assert read[0].prompt == "\n\nHuman: Hi\n\nAssistant:"
    assert read[1].prompt == TRANSCRIPT
    assert [*read[2].asked] == TALK


def test_every_two_answers_that_differ_enough(samples: Path, scores: Path) -> None:
    asked = options(samples, scores=scores, rule="all", margin=1.0)
    report = make_pairs(asked)
    assert [(row["chosen"], row["rejected"]) for row in rows_of(asked.output)[:2]] == [
        ("Hello.", "Go away."),
        ("Yes?", "Go away."),
    ]
    assert (report.pairs, report.prompts_left_out["small_margin"]) == (3, 1)


def test_a_reward_model_scores_each_answer_once(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(save_reward_model(tmp_path / "reward"))
    asked = options(samples, reward_model=model)
    score, seen = RewardModel.score, list[int]()

    def listening(self: RewardModel, prompts: Any, responses: Any) -> list[float]:
        seen.append(len(responses))
        return score(self, prompts, responses)

    monkeypatch.setattr(RewardModel, "score", listening)
    report = make_pairs(asked, device="cpu", dtype="float32")
    assert seen == [len(SCORED)]
    judge = RewardModel.load(model, device="cpu", dtype="float32")
    for row in rows_of(asked.output):
        for side in ("chosen", "rejected"):
            text = row[side] if isinstance(row[side], str) else row[side][0]["content"]
            (want,) = judge.score([row["prompt"]], [text])
            assert row[f"{side}_score"] == pytest.approx(want, abs=1e-4)
        assert row["chosen_score"] > row["rejected_score"]
    assert report.pairs == 5


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no answer among 0 lines"),
        ([{"prompt": "Hi", "error": "no"}], "no answer among 1 lines"),
        ([{"response": "Hi"}], "line 1: got .*expected an object with 'prompt'"),
        ([{"prompt": "Hi", "response": 3}], "line 1: got .*expected 'response', a text"),
        ([{"prompt": "Hi", "response": "Lone."}], "no pair of 1 prompts; left out: 1 answers uns"),
    ],
)
def test_files_without_a_pair_are_refused(
    rows: list[dict[str, Any]], told: str, scores: Path, tmp_path: Path
) -> None:
    asked = options(write(tmp_path / "in.jsonl", rows), scores=scores)
    with pytest.raises(DataError, match=told):
        make_pairs(asked)
    assert not asked.output.exists()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "Hi", "response": "Hello."}, "expected 'response' and 'score'"),
        ({"prompt": "Hi", "response": "Hello.", "score": "3"}, 'score: got "3", expected a num'),
        ({"prompt": "Hi", "response": "Hello.", "score": True}, "score: got true"),
        ({"prompt": "Hi", "response": "Hello.", "score": 7}, "got 7 and before that 1.0 for the"),
    ],
)
def test_scores_that_are_none_are_refused(
    row: dict[str, Any], told: str, samples: Path, tmp_path: Path
) -> None:
    first = {"prompt": "Hi", "response": "Hello.", "score": 1.0}
    scores = write(tmp_path / "wrong.jsonl", [first, row])
    with pytest.raises(DataError, match=told):
        make_pairs(options(samples, scores=scores))


def test_what_cannot_be_is_refused(samples: Path, scores: Path) -> None:
    with pytest.raises(UsageError, match="samples: got none"):
        PairOptions(output=samples, scores=scores)
    with pytest.raises(UsageError, match="scores: got neither this nor `reward_model`"):
        options(samples)
    with pytest.raises(UsageError, match="scores: got both this and `reward_model`"):
        options(samples, scores=scores, reward_model="m")
    with pytest.raises(UsageError, match="rule: got 'best', expected one of extremes, all"):
        options(samples, scores=scores, rule="best")
    taken = options(samples, scores=scores)
    taken.output.write_text("")
    with pytest.raises(DataError, match="exists already"):
        make_pairs(taken)
