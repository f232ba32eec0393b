"""Samples of base and head, and of the base alone: what is written, and what resumes."""

import json
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.comparison import answer_work
from mav.pipeline.comparison.answer_work import seed_of
from mav.pipeline.comparison.records import AnswerKey
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions, InferenceOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.rounds.options import SampleOptions
from mav.pipeline.rounds.sample import sample
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.logs import logged_messages
from tests.support.steering.heads import write_head
from tests.support.steering.listeners import alone

LOADING = InferenceOptions(dtype="float32", device="cpu")
TEXTS = ("Hi", "How do I mend a kite?", "No.")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sampled")
    base = tiny_base(tie_word_embeddings=False)
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    return {
        "base_model": str(save_base(base, folder / "base")),
        "head": write_head(folder / "head", make_cache(folder / "cached", base, pairs=4)),
        "prompts": str(folder / "prompts.txt"),
    }


def options(made: dict[str, str], output: Path, **more: Any) -> SampleOptions:
    how = GenerationOptions(max_new_tokens=5, temperature=1.0, seed=7)
    return SampleOptions(**{**made, "output": output, "n": 3, "decoding": how, **more})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_that_each_seed_gives_alone(made: dict[str, str], tmp_path: Path) -> None:
    asked = options(made, tmp_path / "out.jsonl", alpha=2.0)
    report = sample(asked, LOADING)
    found = lines_of(asked.output)
    assert (report.prompts, report.answers, report.failed) == (3, 9, 0)
    assert [(line["prompt"], line["sample"]) for line in found] == [
        (text, number) for text in TEXTS for number in range(3)
    ]
    assert not (tmp_path / "out.jsonl.partial").exists()
    mav = MAVInference.from_options(made["head"], made["base_model"], LOADING)
    form = mav.joined.form
    for place, line in enumerate(found):
        seed = seed_of(7, AnswerKey(place // 3, place % 3))
        request = Request(
            prompt=tuple(form.tokens(form.render(line["prompt"]))),
            alpha=as_strength(2.0),
            decoding=GenerationOptions(max_new_tokens=5, temperature=1.0, seed=seed),
            top_logprobs=0,
            kl=True,
        )
        want = alone(mav, request)
        assert (line["alpha"], line["response"]) == (2.0, want.text.rstrip())
        assert line["kl"] == pytest.approx(sum(want.kl), rel=1e-3, abs=1e-5)
    assert len({line["response"] for line in found}) > 3


def test_the_base_alone_is_alpha_0_of_any_head(made: dict[str, str], tmp_path: Path) -> None:
    plain = options(made, tmp_path / "base.jsonl", head=None)
    sample(plain, LOADING)
    sample(options(made, tmp_path / "off.jsonl", alpha=0.0), LOADING)
    base, off = (lines_of(tmp_path / name) for name in ("base.jsonl", "off.jsonl"))
    assert base == off
    assert {line["alpha"] for line in base} == {0.0}
    assert {line["kl"] for line in base} == {0.0}


def test_the_base_alone_is_loaded_as_asked(made: dict[str, str], tmp_path: Path) -> None:
    loading = InferenceOptions(dtype="float32", device="cpu", merge_adapter=True)
    with logged_messages() as logged:
        sample(options(made, tmp_path / "base.jsonl", head=None, limit=1, n=1), loading)
    assert any("`merge_adapter` changes nothing" in line for line in logged)


def test_an_interrupted_run_goes_on(
    made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = options(made, tmp_path / "whole.jsonl", batch_size=2)
    sample(whole, LOADING)
    asked = options(made, tmp_path / "out.jsonl", batch_size=2)
    finish, done = answer_work.AnswerWork._finish, list[Any]()

    def stopping(self: Any, ended: Any) -> Any:
        if len(done) > 4:
            raise KeyboardInterrupt
        done.extend(ended)
        return finish(self, ended)

    with monkeypatch.context() as patch:
        patch.setattr(answer_work.AnswerWork, "_finish", stopping)
        with pytest.raises(KeyboardInterrupt, match="are kept, in"):
            sample(asked, LOADING)
    assert not asked.output.exists()
    other = options(made, asked.output, alpha=3.0)
    with pytest.raises(DataError, match=r"other settings \(alpha: 1\.0, now 3\.0\)"):
        sample(other, LOADING)
    count = 0
    take = answer_work._take

    def counting(*given: Any) -> None:
        nonlocal count
        count += 1
        take(*given)

    monkeypatch.setattr(answer_work, "_take", counting)
    sample(asked, LOADING)
    found, want = lines_of(asked.output), lines_of(whole.output)
    assert 0 < count < sum(line["new_tokens"] for line in want)
    assert [line["response"] for line in found] == [line["response"] for line in want]


def test_prompts_that_cannot_be_read_have_an_error(made: dict[str, str], tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("Hi\n" + "kite " * 4000)
    asked = options(made, tmp_path / "out.jsonl", prompts=str(long), n=2)
    report = sample(asked, LOADING)
    assert (report.answers, report.failed) == (2, 2)
    assert ["error" in line for line in lines_of(asked.output)] == [False, False, True, True]


def test_schedules_limits_and_first_turns(made: dict[str, str], tmp_path: Path) -> None:
    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 5, "turns": ["Hi", "And then?"]}))
    how = GenerationOptions(max_new_tokens=4, temperature=1.0, steer_above=0.0)
    asked = options(
        made, tmp_path / "out.jsonl", prompts=str(questions), alpha="0:2,3:0.5", decoding=how
    )
    sample(asked, LOADING)
    found = lines_of(asked.output)
    assert len(found) == 3
    assert {line["alpha"] for line in found} == {"0:2,3:0.5"}
    assert all(line["steered_tokens"] == line["new_tokens"] for line in found)


def test_what_cannot_be_is_refused(made: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match="head: got none and no `base_model`"):
        SampleOptions(prompts="p.txt", output=output)
    with pytest.raises(UsageError, match="alpha: got one without a `head`"):
        options(made, output, head=None, alpha=1.0)
    with pytest.raises(UsageError, match="n: got 3 without temperature"):
        options(made, output, decoding=GenerationOptions())
    with pytest.raises(UsageError, match="int8_head: got True without a `head`"):
        sample(options(made, output, head=None), InferenceOptions(int8_head=True))
    output.write_text("")
    with pytest.raises(DataError, match="exists already"):
        sample(options(made, output), LOADING)
