"""Minimal pairs, and how many of them base and head get right."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import capability
from benchmarks.minimal_pairs import MinimalPair, our_pairs, read_blimp
from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.base.loading import load_base
from mav.pipeline.decoding.inference import MAVInference
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.steering.heads import write_head
from tests.support.steering.steered import whole_text_logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tiny_base(), tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("head")
    return write_head(folder / "head", make_cache(folder, pairs=8))


def measured(capsys: Any, *args: object) -> dict[str, Any]:
    capability.main([*map(str, args), "--dtype", "float32", "--device", "cpu", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_there_are_enough_pairs_and_each_differs_in_a_word_or_two() -> None:
    pairs = our_pairs()
    assert len({(pair.good, pair.bad) for pair in pairs}) == len(pairs) >= 200
    counts = Counter(pair.phenomenon for pair in pairs)
    assert len(counts) >= 8
    assert min(counts.values()) >= 20
    for pair in pairs:
        good, bad = pair.good.split(), pair.bad.split()
        assert len(good) - len(bad) in (0, 1)
        left = Counter(good) - Counter(bad)
        assert 1 <= sum(left.values()) <= 2, pair
        assert pair.good[0].isupper()
        assert pair.good.endswith(".")


def test_a_sentences_log_probability_is_that_of_a_plain_pass(head: str, base: str) -> None:
    mav = MAVInference(head, base, dtype="float32", device="cpu")
    untouched = load_base(base, dtype="float32", device="cpu")
    texts = [pair.good for pair in our_pairs()[::40]]
    for alpha in (0.0, 1.5):
        for text, found in zip(texts, capability.sentence_logprobs(mav, texts, alpha), strict=True):
            tokenizer = untouched.tokenizer
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
            logits = whole_text_logits(mav, untouched, ids[:, :-1], torch.tensor(alpha))
            own = logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).sum()
            assert found == pytest.approx(float(own), abs=1e-3)


def test_a_pair_is_right_where_its_good_sentence_is_the_more_probable(
    head: str, base: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def by_length(mav: object, texts: list[str], alpha: float) -> list[float]:
        return [-len(text) * (1.0 if alpha == 0 else -1.0) for text in texts]

    monkeypatch.setattr(capability, "sentence_logprobs", by_length)
    pairs = our_pairs()
    found = measured(capsys, "--head", head, "--base-model", base, "--alphas", "0,2")
    shorter = [len(pair.good) < len(pair.bad) for pair in pairs]
    longer = [len(pair.good) > len(pair.bad) for pair in pairs]
    before, after = found["alphas"]["0"], found["alphas"]["2"]
    assert before["all"]["right"] == pytest.approx(sum(shorter) / len(pairs))
    assert after["all"]["right"] == pytest.approx(sum(longer) / len(pairs))
    assert after["all"]["change"] == pytest.approx((sum(longer) - sum(shorter)) / len(pairs))
    low, high = after["all"]["change_interval"]
    assert low < after["all"]["change"] < high
    assert before["all"]["change"] == 0
    own = [value for value, pair in zip(longer, pairs, strict=True) if pair.phenomenon == "passive"]
    assert after["passive"]["right"] == pytest.approx(sum(own) / len(own))
    assert after["passive"]["pairs"] == len(own)


def test_the_table_tells_what_the_json_tells(head: str, base: str, capsys: Any) -> None:
    args = ["--head", head, "--base-model", base, "--dtype", "float32", "--device", "cpu"]
    found = measured(capsys, *args[:4])
    capability.main(args)
    said = capsys.readouterr().out
    for by_name in found["alphas"].values():
        assert f"{by_name['all']['right']:.1%}" in said
    assert said.count("less alpha 0 on the same pairs") == 2


def test_a_local_copy_of_blimp_is_read(tmp_path: Path) -> None:
    rows = [
        {"sentence_good": "A b.", "sentence_bad": "B a.", "linguistics_term": "order"},
        {"sentence_good": "C d.", "sentence_bad": "D c."},
    ]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_blimp(tmp_path) == [
        MinimalPair(phenomenon="order", good="A b.", bad="B a."),
        MinimalPair(phenomenon="one", good="C d.", bad="D c."),
    ]
    with pytest.raises(UsageError, match="expected a folder with BLiMP"):
        read_blimp(tmp_path / "nowhere")
    for wrong in ('{"sentence_good": "x"}', "[]", "{", '{"sentence_good": 1, "sentence_bad": "x"}'):
        (tmp_path / "two.jsonl").write_text(wrong, encoding="utf-8")
        with pytest.raises(DataError, match=r"two\.jsonl, line 1: expected JSON with the texts"):
            read_blimp(tmp_path)


def test_a_head_that_is_none_gets_one_line(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        capability.main(["--head", str(tmp_path)])
    assert ended.value.code in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
