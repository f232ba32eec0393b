"""The cache says what the live model says: states, logits and log-probabilities."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError
from mav.cache_schema.reader import Block, CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.ops.pooling import pool_states
from tests.support.live import cached_logprobs, live_answers, relative
from tests.support.tiny import ARCHITECTURES, HIDDEN, VOCAB, make_cache, tiny_base


def whole_cache(reader: CacheReader) -> tuple[Batch, torch.Tensor]:
    """All pairs as one batch, and the row of the cache each token came from."""
    inside: list[tuple[Block, int]] = []
    rows = []
    for number in range(reader.plan.blocks):
        block = reader.read_block(number)
        inside += [(block, index) for index in range(len(block.pairs))]
        rows.append(torch.arange(int(block.offsets[-1])) + reader.plan.first_row(number))
    return collate(inside, reader.manifest, len(inside)), torch.cat(rows)


def assert_equals_live(root: Path, base: BaseModel, tolerance: float = 1e-5) -> None:
    reader = CacheReader(root)
    batch, rows = whole_cache(reader)
    place = {int(row): at for at, row in enumerate(rows)}
    logits = CachedBase(reader, torch.device("cpu")).logits(batch).chunk(0, len(rows))
    logprobs = cached_logprobs(reader, batch)
    answers = live_answers(reader, base)
    assert sum(len(answer.labels) for answer in answers) == len(rows)
    layers = list(reader.manifest.states.layers)
    width = reader.manifest.states.pooled_size
    for answer in answers:
        at = slice(place[answer.start], place[answer.start] + len(answer.labels))
        assert batch.labels[at].tolist() == answer.labels.tolist()
        want = pool_states(answer.states[:, layers], width)
        got = pool_states(batch.states[at], width)
        for number in range(len(layers)):
            assert relative(got[:, number], want[:, number]) < tolerance
        assert relative(logits[at], answer.logits) < tolerance
        logp = answer.logits.double().log_softmax(-1).gather(-1, answer.labels[:, None])[:, 0]
        torch.testing.assert_close(logprobs[at].double(), logp, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    base = tiny_base(architecture)
    assert_equals_live(make_cache(tmp_path, base, pairs=12), base)


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
    assert_equals_live(make_cache(tmp_path, base, pairs=12, **options), base)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"hidden_size": 24}], ids=str)
def test_tied_embeddings_and_other_widths(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_base("llama", **changes)
    assert_equals_live(make_cache(tmp_path, base, pairs=8), base)


def test_truncated_prompts_and_cut_answers(tmp_path: Path) -> None:
    base = tiny_base()
    root = make_cache(tmp_path, base, pairs=20, max_length=40)
    data = CacheReader(root).manifest.data
    assert data.prompts_truncated and data.responses_cut
    assert_equals_live(root, base)


def test_bfloat16_within_its_precision(tmp_path: Path) -> None:
    base = tiny_base(dtype=torch.bfloat16)
    root = make_cache(tmp_path, base, pairs=8, dtype="bfloat16")
    assert_equals_live(root, base, tolerance=4e-2)


def test_a_model_that_does_not_honour_packing_runs_each_answer_apart(
    tmp_path: Path,
) -> None:
    # Bloom's ALiBi counts keys, whatever the positions that are given.
    base = tiny_base("bloom")
    root = make_cache(tmp_path, base, pairs=8)
    assert_equals_live(root, base)


def test_a_window_shorter_than_the_texts(tmp_path: Path) -> None:
    base = tiny_base("mistral", sliding_window=16)
    assert_equals_live(make_cache(tmp_path, base, pairs=8), base)


def test_logits_that_are_no_function_of_the_state_are_refused_or_stored(tmp_path: Path) -> None:
    base = tiny_base()

    def shift(_: object, __: object, output: Any) -> Any:
        output.logits = output.logits + torch.linspace(0, 5, VOCAB)
        return output

    base.model.register_forward_hook(shift)
    with pytest.raises(BaseModelError, match=r"cannot be factored.*--logits dense"):
        make_cache(tmp_path / "factored", base, pairs=8)
    assert not (tmp_path / "factored" / "cache").exists()
    assert_equals_live(make_cache(tmp_path / "dense", base, pairs=8, logits="dense"), base)


def test_states_taken_from_a_wrong_layer_stop_the_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    layers = BaseModel._layers
    monkeypatch.setattr(BaseModel, "_layers", lambda self: layers(self)[::-1])
    with pytest.raises(BaseModelError, match="layer 1 are not its hidden_states"):
        make_cache(tmp_path, base, pairs=8)
