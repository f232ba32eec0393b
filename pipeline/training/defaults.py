"""Options of a training run whose default depends on the cache or the device."""

import dataclasses
import logging
from typing import Literal

import torch

from mav.cache_schema.manifest import Manifest
from mav.pipeline.head.config import (
    PUBLISHED_EXPANSION_SIZE,
    base_parameters,
    default_expansion_size,
)
from mav.pipeline.runtime.compute_dtype import AUTO, pick_dtype_for_stored
from mav.pipeline.training.checkpoint import TrainState
from mav.pipeline.training.options import TrainOptions

_log = logging.getLogger(__name__)


def settled(
    options: TrainOptions,
    manifest: Manifest,
    device: torch.device,
    *,
    begun: TrainState | None = None,
) -> TrainOptions:
    """Return options in which `bf16` and `expansion_size` are what they come to.

    Args:
        options: What is asked for.
        manifest: The manifest of the cache.
        device: Where to compute.
        begun: The state of the run to continue.
    """
    return dataclasses.replace(
        options,
        bf16=_bf16(options, device, begun),
        expansion_size=options.expansion_size or _expansion_size(manifest),
    )


def _bf16(options: TrainOptions, device: torch.device, begun: TrainState | None) -> bool:
    asked = options.bf16
    if asked == AUTO and begun is not None and isinstance(begun.trajectory.get("bf16"), bool):
        asked = bool(begun.trajectory["bf16"])
        _log.info(f"Computing in {_named(asked)}, in which the run was begun")
    if asked == AUTO:
        return pick_dtype_for_stored(AUTO, device) == torch.bfloat16
    pick_dtype_for_stored(_named(bool(asked)), device)
    return bool(asked)


def _named(bf16: bool) -> Literal["bfloat16", "float32"]:
    return "bfloat16" if bf16 else "float32"


def _expansion_size(manifest: Manifest) -> int:
    base = manifest.base
    layers, pooled = len(manifest.states.layers), manifest.states.pooled_size
    size = default_expansion_size(base, layers, pooled)
    if size != PUBLISHED_EXPANSION_SIZE:
        approximately = "" if base.parameters is not None else "about "
        _log.info(
            f"`expansion_size` {size}, for a head of at most a third of the base's {approximately}"
            f"{base_parameters(base):,} parameters; the published one is {PUBLISHED_EXPANSION_SIZE}"
        )
    return size
