"""The catalogue's bases in sizes that vLLM's attention has on a CPU, with heads for each."""

from pathlib import Path
from typing import Any, Final

from mav.pipeline.base.loading import load_base
from mav.pipeline.runtime.choices import HeadKind
from tests.support.engine.world import POOLED, SHAPE, made_head
from tests.support.models.tiny import make_cache, save_base, tiny_base

VARIANT_KINDS: Final[tuple[HeadKind, ...]] = ("mlp", "unembedding")
_ROWS: Final = 304
"""Of the embeddings: some of transformers' tokenizers add a token of their own to a file's."""
_MORE: Final[dict[str, dict[str, Any]]] = {
    "gemma4_text": {"global_head_dim": 32, "vocab_size_per_layer_input": _ROWS}
}


def write_variant(folder: Path, name: str) -> None:
    """Save a random base of a variant as `base`, and heads for it by their kinds."""
    sizes = {**SHAPE, **_MORE.get(name, {})}
    save_base(tiny_base(name, vocab_size=_ROWS, **sizes), folder / "base")
    # As it is loaded, as its tokenizer may differ from the one that was saved.
    base = load_base(str(folder / "base"), dtype="float32", device="cpu")
    cache = make_cache(folder / "made", base, pairs=4, pooled_size=POOLED)
    for number, kind in enumerate(VARIANT_KINDS):
        made_head(folder / kind, cache, kind, seed=number)
