"""Heads with random weights, and heads on disk as if they had been trained from a cache."""

import dataclasses
from pathlib import Path
from typing import Any, Final, get_args

import torch

from mav.cache_schema import CacheReader, Manifest
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import save_head
from mav.pipeline.head.storage import HeadOrigin
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import HIDDEN, VOCAB, make_cache, save_base, tiny_base

SIZES: Final = HeadConfig(
    num_layers=3, pooled_size=32, expansion_size=16, vocab_size=300, dropout=0.25
)
KINDS: Final[tuple[HeadKind, ...]] = get_args(HeadKind)
FRACTION: Final = 0.3
"""Share of prompts that training holds out."""


def size_option(kind: HeadKind, size: int) -> dict[str, Any]:
    """The option that gives a head of a kind its inner width, in place of `expansion_size`."""
    return {"head_type": kind, ("expansion_size" if kind == "mlp" else "rank"): size}


def sizes_of(
    kind: HeadKind, *, inner: int | None = 24, pooled_size: int = HIDDEN, **more: Any
) -> HeadConfig:
    """Sizes of a head of a kind for the tiny bases."""
    given: dict[str, Any] = {"num_layers": 3, "vocab_size": VOCAB, **more}
    if kind == "mlp":
        given["expansion_size"] = inner
    else:
        given["rank"] = inner
    if kind == "unembedding":
        given.setdefault("hidden_size", HIDDEN)
    return HeadConfig(kind=kind, pooled_size=pooled_size, **given)


def random_head(pooled_size: int, layers: int = 3, kind: HeadKind = "mlp") -> AlignmentHead:
    """A head for the tiny bases whose last layer is not zero."""
    torch.manual_seed(1)
    head = AlignmentHead(sizes_of(kind, pooled_size=pooled_size, num_layers=layers))
    torch.nn.init.normal_(head.project.weight, std=0.2)
    return head.eval()


def seeded_head(seed: int = 0, config: HeadConfig = SIZES) -> AlignmentHead:
    """A head whose every weight follows from a seed."""
    torch.manual_seed(seed)
    head = AlignmentHead(config)
    for parameter in head.project.parameters():
        torch.nn.init.normal_(parameter)
    return head.eval()


def origin_of(manifest: Manifest, steps: int = 12) -> HeadOrigin:
    """Where a head comes from that was trained for some steps."""
    return HeadOrigin(
        manifest=manifest, objective="mav", beta=0.3, held_out_fraction=0.05, steps=steps
    )


def same_weights(first: AlignmentHead, second: AlignmentHead) -> bool:
    """Whether two heads have the same weights, bit by bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def write_head(folder: Path, cache: Path, pooled_size: int = HIDDEN) -> str:
    """Save `random_head` as if it had been trained from a cache; return the folder."""
    origin = HeadOrigin(
        manifest=CacheReader(cache).manifest,
        objective="dpo",
        beta=0.1,
        held_out_fraction=0.0,
        steps=1,
    )
    save_head(random_head(pooled_size), origin, folder)
    return str(folder)


def write_base_and_head(root: Path) -> Path:
    """Save a tiny base and a random head for it as `base` and `head` in a folder; return it."""
    save_base(tiny_base(), root / "base")
    write_head(root / "head", make_cache(root, tiny_base(), pairs=8))
    return root


def save_random_head(
    cache: Path, folder: Path, fraction: float = FRACTION, kind: HeadKind = "mlp", **base: Any
) -> str:
    """Save a head as if it had been trained from a cache.

    Args:
        cache: The cache.
        folder: Where to.
        fraction: Share of prompts that it was not trained on.
        kind: Its kind.
        base: Changes to the record of the cache's base.
    """
    manifest = CacheReader(cache).manifest
    manifest = dataclasses.replace(manifest, base=dataclasses.replace(manifest.base, **base))
    torch.manual_seed(3)
    vocab = manifest.base.vocab_size
    head = AlignmentHead(sizes_of(kind, inner=16, vocab_size=vocab))
    for parameter in head.project.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    origin = HeadOrigin(
        manifest=manifest, objective="dpo", beta=0.1, held_out_fraction=fraction, steps=1
    )
    save_head(head, origin, folder)
    return str(folder)
