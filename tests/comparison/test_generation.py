"""Answers with their KL: as a plain computation has it, alone, together and after a resumption."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import DataError
from mav.pipeline.comparison import answer_work
from mav.pipeline.comparison.answer_work import seed_of
from mav.pipeline.comparison.generation import generate_answers
from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.questions import Question
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from tests.support.steering.steered import steered, varied_base, whole_text_logits

SAMPLED = GenerationOptions(max_new_tokens=9, temperature=1.0, seed=3)
TEXTS = ("Hi", "How do I mend a kite?", "Who would lift the old red door in 4 days?", "No.")


def prompts_of(*questions: Question) -> Prompts:
    return Prompts(
        source="here", kind="prompts", questions=questions, rows=len(questions), dropped={}
    )


PROMPTS = prompts_of(*(Question(prompt=text) for text in TEXTS))


@pytest.fixture(scope="module")
def mav() -> Iterator[MAVInference]:
    made = steered(varied_base("llama"))
    yield made
    made.close()


def answers(
    mav: MAVInference, folder: Path, alpha: float = 1.0, prompts: Prompts = PROMPTS, **more: Any
) -> list[Answer]:
    settings: dict[str, Any] = {"decoding": SAMPLED, **more}
    return generate_answers(mav, "it", prompts, alpha, folder / "answers.jsonl", **settings)


def same(first: Answer, second: Answer) -> bool:
    """Whether two answers are the same but for the time they took."""
    assert first.kl is not None
    assert second.kl is not None
    assert first.base_logprob is not None
    return (
        (first.key, first.response, first.new_tokens, first.finish)
        == (second.key, second.response, second.new_tokens, second.finish)
        and math.isclose(first.kl, second.kl, rel_tol=1e-4, abs_tol=1e-4)
        and first.base_logprob == pytest.approx(second.base_logprob, rel=1e-4)
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2-window", "cohere"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_kl_is_that_of_a_plain_pass_over_the_whole_text(
    architecture: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mav, untouched = steered(varied_base(architecture)), varied_base(architecture)
    tokens: dict[int, list[int]] = {}
    take = answer_work._take

    def listening(job: Any, output: Any, seconds: float) -> None:
        tokens.setdefault(job.key.question, []).append(output.token)
        take(job, output, seconds)

    monkeypatch.setattr(answer_work, "_take", listening)
    decoding = dataclasses.replace(SAMPLED, temperature=temperature, repetition_penalty=1.3)
    for answer in answers(mav, tmp_path, 0.7, decoding=decoding):
        new = tokens[answer.key.question]
        assert answer.new_tokens == len(new)
        form = mav.joined.form
        prompt = form.tokens(form.render(TEXTS[answer.key.question]))
        text = torch.tensor([[*prompt, *new[:-1]]])
        aligned, base = (
            whole_text_logits(mav, untouched, text, torch.tensor(alpha))[len(prompt) - 1 :]
            .softmax(-1)
            .double()
            for alpha in (0.7, 0.0)
        )
        kl = float((aligned * (aligned.log() - base.log())).sum())
        assert kl > 0.01
        assert answer.kl == pytest.approx(kl, rel=1e-3)
        chosen = base.log().gather(-1, torch.tensor(new)[:, None])
        assert answer.base_logprob == pytest.approx(float(chosen.sum()), rel=1e-3)


def test_at_alpha_0_it_is_0(mav: MAVInference, tmp_path: Path) -> None:
    assert [answer.kl for answer in answers(mav, tmp_path, 0.0)] == [0.0] * len(TEXTS)


def test_alone_and_in_batches_answers_are_the_same(mav: MAVInference, tmp_path: Path) -> None:
    found = []
    for batch_size in (1, 3, 8):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        found.append(answers(mav, folder, batch_size=batch_size, samples=2))
    for alone, *others in zip(*found, strict=True):
        assert all(same(alone, other) for other in others)
    assert len({answer.response for answer in found[0]}) > len(TEXTS)


def test_seeds_differ_by_prompt_sample_and_turn() -> None:
    keys = [AnswerKey(q, s, t) for q in range(3) for s in range(3) for t in range(2)]
    assert len({seed_of(5, key) for key in keys} | {seed_of(6, key) for key in keys}) == 36
    assert seed_of(None, keys[0]) == seed_of(0, keys[0])


def test_a_second_turn_follows_the_systems_own_first_answer(
    mav: MAVInference, tmp_path: Path
) -> None:
    prompts = prompts_of(
        Question(prompt="Name a tree.", follow_ups=("Name another.",)), Question(prompt="Hi")
    )
    first, second, alone = answers(mav, tmp_path, prompts=prompts, batch_size=1)
    assert [one.key for one in (first, second, alone)] == [(0, 0, 0), (0, 0, 1), (1, 0, 0)]
    own = prompts_of(Question(prompt=prompts.questions[0].asked([first.response])))
    asked = [
        {"role": "user", "content": "Name a tree."},
        {"role": "assistant", "content": first.response},
        {"role": "user", "content": "Name another."},
    ]
    assert own.questions[0].prompt == asked
    greedy = GenerationOptions(max_new_tokens=6)
    for folder in (tmp_path / "turns", tmp_path / "single"):
        folder.mkdir()
    first, second, _ = answers(mav, tmp_path / "turns", prompts=prompts, decoding=greedy)
    own = prompts_of(Question(prompt=prompts.questions[0].asked([first.response])))
    (single,) = answers(mav, tmp_path / "single", prompts=own, decoding=greedy)
    assert same(single, dataclasses.replace(second, key=AnswerKey(0)))


def test_a_run_goes_on_after_a_kill(
    mav: MAVInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answers(mav, tmp_path)
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # The third line is torn, as a kill in the middle of a write leaves it.
    path.write_bytes(b"".join(lines[:3])[:-9])
    decoded: list[int] = []
    add = ContinuousBatchDecoder.add

    def counting(self: Any, requests: Any) -> Any:
        decoded.append(len(requests))
        return add(self, requests)

    monkeypatch.setattr(ContinuousBatchDecoder, "add", counting)
    again = answers(mav, tmp_path)
    assert sum(decoded) == len(TEXTS) - 1
    assert all(same(first, second) for first, second in zip(whole, again, strict=True))
    answers(mav, tmp_path)
    assert sum(decoded) == len(TEXTS) - 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"alpha": 2.0}, "alpha: 1.0, now 2.0"),
        ({"samples": 2}, "samples: 1, now 2"),
        ({"decoding": dataclasses.replace(SAMPLED, seed=4)}, "seed: 3, now 4"),
        ({"prompts": prompts_of(Question(prompt="Else"))}, "prompts: '[0-9a-f]{16}', now '"),
    ],
)
def test_answers_of_another_run_are_refused(
    mav: MAVInference, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    answers(mav, tmp_path)
    with pytest.raises(DataError, match=rf"answers of a run with other settings \({told}"):
        answers(mav, tmp_path, **change)


def test_answers_of_another_head_are_refused(mav: MAVInference, tmp_path: Path) -> None:
    answers(mav, tmp_path)
    path = tmp_path / "answers.jsonl"
    header, rest = path.read_text().split("\n", 1)
    other = json.dumps({**json.loads(header), "head": "0" * 64})
    path.write_text(f"{other}\n{rest}")
    with pytest.raises(DataError, match=r"other settings \(head: '0{64}', now '"):
        answers(mav, tmp_path)


def test_a_prompt_that_is_too_long_is_an_error_of_its_line(
    mav: MAVInference, tmp_path: Path
) -> None:
    prompts = prompts_of(
        Question(prompt="a kite " * 400, follow_ups=("And then?",)), Question(prompt="Hi")
    )
    long, after, short = answers(mav, tmp_path, prompts=prompts)
    assert long.error is not None
    assert "expected at most 256 together" in long.error
    assert after.error == "the turn before it has no answer"
    assert short.error is None
    assert [one.response for one in (long, after)] == ["", ""]


def test_where_memory_runs_out_fewer_are_decoded_together(
    mav: MAVInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answers(mav, tmp_path)
    step = ContinuousBatchDecoder.step

    def tight(self: Any) -> Any:
        if len(self.sequences) > 1:
            raise MemoryError
        return step(self)

    monkeypatch.setattr(ContinuousBatchDecoder, "step", tight)
    (tmp_path / "tight").mkdir()
    found = answers(mav, tmp_path / "tight")
    assert all(same(first, second) for first, second in zip(whole, found, strict=True))

    def none(self: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(ContinuousBatchDecoder, "step", none)
    (tmp_path / "none").mkdir()
    told = {answer.error for answer in answers(mav, tmp_path / "none")}
    assert told == {"out of memory for this prompt alone; shorten it or lower `max_new_tokens`"}
