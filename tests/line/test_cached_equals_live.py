"""The cache says what the live model says: states, logits and log-probabilities."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.model import BaseModel
from tests.support.models.tiny import ARCHITECTURES, HIDDEN, VOCAB, make_cache, tiny_base
from tests.support.steering.live import assert_equals_live


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    base = tiny_base(architecture)
    assert_equals_live(make_cache(tmp_path, base, pairs=6), base)


@pytest.mark.parametrize(
    "options",
    [
        {"layer_selection": "uniform", "num_layers": 4},
        {"layer_selection": "uniform", "num_layers": 1},
        {"layer_selection": "0,2"},
        {"layer_selection": "0,1,2,3,4"},
        {"pooled_size": HIDDEN // 2},
        {"pooled_size": HIDDEN * 2 + 5},
        {"logits": "dense"},
        {"logits": "topk", "top_k": VOCAB - 1},
        {"batch_tokens": 1},
        {"block_tokens": None},
    ],
    ids=str,
)
def test_every_choice_of_layers_pooling_logits_and_batches(
    options: dict[str, Any], tmp_path: Path
) -> None:
    base = tiny_base()
    assert_equals_live(make_cache(tmp_path, base, pairs=6, **options), base)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"hidden_size": 24}], ids=str)
def test_tied_embeddings_and_other_widths(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_base("llama", **changes)
    assert_equals_live(make_cache(tmp_path, base, pairs=6), base)


def test_truncated_prompts_and_cut_answers(tmp_path: Path) -> None:
    base = tiny_base()
    root = make_cache(tmp_path, base, pairs=20, max_length=40)
    data = CacheReader(root).manifest.data
    assert data.prompts_truncated and data.responses_cut
    assert_equals_live(root, base)


def test_bfloat16_within_its_precision(tmp_path: Path) -> None:
    base = tiny_base(dtype=torch.bfloat16)
    root = make_cache(tmp_path, base, pairs=6, dtype="bfloat16")
    assert_equals_live(root, base, tolerance=4e-2)


def test_a_model_that_does_not_honour_packing_runs_each_answer_apart(
    tmp_path: Path,
) -> None:
    # Bloom's ALiBi counts keys, whatever the positions that are given.
    base = tiny_base("bloom")
    root = make_cache(tmp_path, base, pairs=6)
    assert_equals_live(root, base)


def test_a_window_shorter_than_the_texts(tmp_path: Path) -> None:
    base = tiny_base("mistral", sliding_window=16)
    assert_equals_live(make_cache(tmp_path, base, pairs=6), base)


def test_logits_that_are_no_function_of_the_state_are_refused_or_stored(tmp_path: Path) -> None:
    base = tiny_base()

    def shift(_: object, __: object, output: Any) -> Any:
        output.logits = output.logits + torch.linspace(0, 5, VOCAB)
        return output

    base.model.register_forward_hook(shift)
    with pytest.raises(BaseModelError, match=r"cannot be factored.*`logits` dense"):
        make_cache(tmp_path / "factored", base, pairs=6)
    assert not (tmp_path / "factored" / "cache").exists()
    assert_equals_live(make_cache(tmp_path / "dense", base, pairs=6, logits="dense"), base)


def test_states_taken_from_a_wrong_layer_stop_the_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    layers = BaseModel._layers
    monkeypatch.setattr(BaseModel, "_layers", lambda self: layers(self)[::-1])
    with pytest.raises(BaseModelError, match="layer 1 are not its hidden_states"):
        make_cache(tmp_path, base, pairs=6)
