"""A tiny base whose attention vLLM can compute on a CPU, and heads of every kind for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from mav.cache_schema import CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import save_head
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.steering.heads import KINDS, origin_of

WIDTH: Final = 64
POOLED: Final = 32
SHAPE: Final[dict[str, Any]] = {
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


def engine_base(architecture: str = "llama", **changes: Any) -> BaseModel:
    """A random base whose heads of attention are of a size that vLLM has on a CPU."""
    return tiny_base(architecture, **{"tie_word_embeddings": False, **SHAPE, **changes})


def made_head(folder: Path, cache: Path, kind: HeadKind, seed: int = 3) -> Path:
    """Save a head with random weights as if it had been trained from a cache."""
    manifest = CacheReader(cache).manifest
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"expansion_size" if kind == "mlp" else "rank": 24}
    if kind == "unembedding":
        sizes["hidden_size"] = manifest.base.hidden_size
    head = AlignmentHead(
        HeadConfig(
            kind=kind,
            num_layers=len(manifest.states.layers),
            pooled_size=manifest.states.pooled_size,
            vocab_size=manifest.base.vocab_size,
            **sizes,
        )
    )
    for parameter in head.project.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_head(head, origin_of(manifest), folder)
    return folder


def write_world(
    folder: Path,
    architecture: str = "llama",
    changes: Mapping[str, Any] | None = None,
    **extraction: Any,
) -> Path:
    """Save a base as `base` and a head of each kind under its name; return the folder.

    Args:
        folder: Where.
        architecture: A variant of the catalogue.
        changes: Of the base's settings.
        extraction: Options of the extraction whose cache the heads are for.
    """
    base = engine_base(architecture, **(changes or {}))
    save_base(base, folder / "base")
    cache = make_cache(folder / "made", base, pairs=8, pooled_size=POOLED, **extraction)
    for number, kind in enumerate(KINDS):
        made_head(folder / kind, cache, kind, seed=number)
    made_head(folder / "other", cache, "mlp", seed=9)
    return folder
