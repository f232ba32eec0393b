"""Caches, heads and bases that do not belong together."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import tokenizer_digest
from tests.support.models.tiny import VOCAB, make_cache, save_base, tiny_base
from tests.support.running.commands import refused
from tests.support.running.refusals import (
    DATA,
    World,
    copy_of_base,
    evaluate_args,
    generate_args,
    train_args,
)


def test_head_and_cache_of_another_vocabulary_size(world: World) -> None:
    message = refused(DATA, *evaluate_args(world.head, world.other_vocabulary))
    assert f"vocabulary of {VOCAB} tokens" in message
    assert f"{world.other_vocabulary} has {VOCAB + 8}" in message


def test_head_and_cache_of_another_tokenizer(world: World, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(world.model.tokenizer)
    tokenizer.add_tokens(["another"])
    other = make_cache(tmp_path, BaseModel(model=world.model.model, tokenizer=tokenizer), pairs=3)
    message = refused(DATA, *evaluate_args(world.head, other))
    assert f"both have {VOCAB} tokens, but other tokenizers" in message
    assert tokenizer_digest(tokenizer.get_vocab())[:12] in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layer_selection": "1,4"}, "differ in layers: 3 and 2"),
        ({"layer_selection": "0,2,4"}, "differ in layers: (1, 2, 4) and (0, 2, 4)"),
        ({"pooled_size": 16}, "differ in pooled size: 32 and 16"),
    ],
)
def test_head_and_cache_of_other_features(
    world: World, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    other = make_cache(tmp_path / "other", world.model, pairs=3, **options)
    assert told in refused(DATA, *evaluate_args(world.head, other))


def test_eval_cache_of_another_vocabulary_size(world: World, output: Path) -> None:
    args = [*train_args(world.cache, output), "--eval-cache", world.other_vocabulary]
    message = refused(DATA, *args)
    assert str(VOCAB) in message
    assert str(VOCAB + 8) in message
    assert not output.exists()


def test_base_of_another_vocabulary_size_at_generate(world: World, tmp_path: Path) -> None:
    base = save_base(tiny_base(vocab_size=VOCAB + 8), tmp_path / "base")
    args = [*generate_args(world.head), "--base-model", base, "--prompt", "Hi"]
    message = refused(DATA, *args)
    assert f"vocabulary of {VOCAB} tokens" in message
    assert f"the base has {VOCAB + 8} ({base})" in message


def test_base_of_another_tokenizer_at_generate(world: World, tmp_path: Path) -> None:
    base = copy_of_base(world, tmp_path)
    path = base / "tokenizer.json"
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(value))
    args = [*generate_args(world.head), "--base-model", base, "--prompt", "Hi"]
    assert f"both have {VOCAB} tokens, but other tokenizers" in refused(DATA, *args)
