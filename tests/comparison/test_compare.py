"""A comparison from prompts to summary, with tiny models."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import BaseModelError, DataError, UsageError
from mav.pipeline.comparison import run
from mav.pipeline.comparison.options import CompareOptions
from mav.pipeline.comparison.reward import RewardModel
from mav.pipeline.comparison.run import ANSWERS, SUMMARY, compare
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.switching import SwitchableModel
from tests.support.models.tiny import make_cache, save_base, tiny_base, write_rows
from tests.support.steering.comparisons import save_reward_model
from tests.support.steering.heads import save_random_head, write_head

TEXTS = ("Hi", "How do I mend a kite?", "Who would lift the old red door in 4 days?")


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a comparison takes; read only."""

    base: Path
    head: str
    other_head: str
    reward: Path
    prompts: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("compare")
    base = tiny_base(tie_word_embeddings=False)
    cache = make_cache(folder / "cached", base, pairs=6)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(TEXTS), encoding="utf-8")
    return Made(
        base=save_base(base, folder / "base"),
        head=write_head(folder / "first", cache),
        other_head=save_random_head(cache, folder / "second"),
        reward=save_reward_model(folder / "reward"),
        prompts=prompts,
    )


def compared(made: Made, output: Path, **more: Any) -> run.Comparison:
    settings: dict[str, Any] = {
        "head": (made.head,),
        "alphas": (0.0, 1.0),
        "prompts": str(made.prompts),
        "decoding": GenerationOptions(max_new_tokens=8, temperature=1.0),
        **more,
    }
    return compare(
        CompareOptions(output=output, **settings),
        base=str(made.base),
        device="cpu",
        dtype="float32",
    )


def test_two_heads_a_reward_model_and_a_file(made: Made, tmp_path: Path) -> None:
    first = compared(made, tmp_path / "first")
    theirs = tmp_path / "first" / ANSWERS / "alpha=1.jsonl"
    found = compared(
        made,
        tmp_path / "second",
        head=(f"one={made.head}", made.other_head),
        alphas=(0.0, 1.0, 2.0),
        reward_model=(str(made.reward),),
        others=(f"theirs={theirs}",),
    )
    summary = found.summary
    names = ["alpha=0", "one,alpha=1", "one,alpha=2", "second,alpha=1", "second,alpha=2", "theirs"]
    assert [one.name for one in summary.systems] == names
    base, ours, further, *_, theirs_again = summary.systems
    assert (base.kl.value, base.head, base.alpha) == (0.0, None, 0.0)
    assert ours.kl.value is not None
    assert further.kl.value is not None
    assert 0 < ours.kl.value < further.kl.value
    # Seeds follow from prompts alone, so the same head writes the same again.
    assert theirs_again.rewards == ours.rewards
    assert theirs_again.kl == ours.kl
    assert theirs_again.perplexity == ours.perplexity
    assert theirs_again.file == "alpha=1.jsonl"
    assert [one.kl for one in summary.systems][:2] == [one.kl for one in first.summary.systems]
    assert json.loads((tmp_path / "second" / SUMMARY).read_text()) == json.loads(
        json.dumps(summary.to_json())
    )
    scorer = RewardModel.load(str(made.reward), device="cpu", dtype="float32")
    (system,) = (one for one in found.systems if one.name == "one,alpha=2")
    said = [answer.response for answer in system.answers.values()]
    rewards = scorer.score(TEXTS, said)
    assert further.rewards["reward"].value == pytest.approx(sum(rewards) / 3, abs=1e-5)


def test_the_base_is_freed_before_the_reward_model_is_loaded(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    bases: list[Any] = []
    begin = SwitchableModel.__init__

    def noting(self: Any, base: Any, *rest: Any) -> None:
        bases.append(weakref.ref(base.model))
        begin(self, base, *rest)

    load = RewardModel.load

    def loading(*args: Any, **more: Any) -> RewardModel:
        gc.collect()
        assert bases
        assert all(base() is None for base in bases)
        return load(*args, **more)

    monkeypatch.setattr(SwitchableModel, "__init__", noting)
    monkeypatch.setattr(RewardModel, "load", loading)
    compared(made, tmp_path, reward_model=(str(made.reward),))


def test_files_alone_are_compared_without_a_base(made: Made, tmp_path: Path) -> None:
    for name, said in (("a", "Yes."), ("b", "I can't help with that.")):
        rows = [{"prompt": text, "response": said} for text in TEXTS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = tuple(f"{name}={tmp_path}/{name}.jsonl" for name in "ab")
    found = compared(
        made, tmp_path / "out", head=(), others=files, reference="b", export=("mt-bench",)
    )
    assert found.summary.base is None
    assert found.summary.decoding is None
    assert [one.refusing.value for one in found.summary.systems] == [0.0, 1.0]
    assert [one.kl.value for one in found.summary.systems] == [None, None]
    assert len((tmp_path / "out/mt-bench/model_answer/a.jsonl").read_text().splitlines()) == 3


def test_more_strengths_and_measures_decode_only_what_is_new(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compared(made, tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / ANSWERS).iterdir()}
    after = compared(made, tmp_path, alphas=(0.0, 1.0, 3.0), reward_model=(str(made.reward),))
    assert {path: path.read_bytes() for path in files} == files
    assert [one.kl for one in before.summary.systems] == [one.kl for one in after.summary.systems][
        :2
    ]


def test_answers_of_another_run_are_refused(made: Made, tmp_path: Path) -> None:
    compared(made, tmp_path)
    with pytest.raises(DataError, match=r"alpha=0\.jsonl: answers of a run with other settings"):
        compared(made, tmp_path, limit=2)
    # The base's answers are the same whatever head is beside it; the head's are not.
    with pytest.raises(DataError, match=r"alpha=1\.jsonl: answers of a run with other settings"):
        compared(made, tmp_path, head=(made.other_head,))


@pytest.mark.parametrize("alphas", [(0.0, 1.0), (1.0,)])
def test_what_is_wrong_is_told_before_anything_is_decoded(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alphas: tuple[float, ...]
) -> None:
    monkeypatch.setattr(run, "generate_answers", None)
    two = save_reward_model(tmp_path / "two", labels=2)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "Why?", "response": "So."}))
    pairs = write_rows(tmp_path / "pairs.jsonl", 2)
    for more, kind, told in (
        ({"reward_model": (str(two),)}, BaseModelError, "classifier with 2 logits"),
        ({"reward_model": (str(tmp_path / "gone"),)}, BaseModelError, "gone"),
        ({"reward_model": (str(made.base),)}, BaseModelError, "computes no reward"),
        ({"others": (f"x={other}",)}, DataError, "1 of its 1 answers are to other prompts"),
        ({"refusals": tmp_path / "gone.txt"}, DataError, "gone.txt"),
        ({"prompts": str(tmp_path / "gone.jsonl")}, DataError, "no such file"),
        ({"output": pairs}, DataError, "name an `output` that is a folder"),
    ):
        settings: dict[str, Any] = {"output": tmp_path / "out", "alphas": alphas, **more}
        with pytest.raises(kind, match=told):
            compared(made, **settings)


def test_heads_of_two_forms_of_prompts_are_refused(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = iter(("hh", "chat"))
    monkeypatch.setattr(run, "prompt_format_of", lambda _: next(forms))
    with pytest.raises(UsageError, match=r"different ones \(first hh, second chat\)"):
        compared(made, tmp_path, head=(made.head, made.other_head))
