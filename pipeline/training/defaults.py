"""Options of a training run whose default depends on the cache or the device."""

import dataclasses
import logging
from typing import Literal

import torch

from mav.cache_schema.manifest import Manifest
from mav.pipeline.head.config import (
    PUBLISHED_EXPANSION_SIZE,
    HeadConfig,
    base_parameters,
    head_config,
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
    """Return options in which `bf16`, the head's sizes and the objective's are what they come to.

    Args:
        options: What is asked for.
        manifest: The manifest of the cache.
        device: Where to compute.
        begun: The state of the run to continue.
    """
    config, objective = config_of(options, manifest), options.as_objective()
    if options.expansion_size is None and config.expansion_size is not None:
        _tell_of_expansion_size(config.expansion_size, manifest)
    return dataclasses.replace(
        options,
        bf16=_bf16(options, device, begun),
        expansion_size=config.expansion_size,
        rank=config.rank,
        dropout=config.dropout,
        beta=objective.beta,
        label_smoothing=objective.label_smoothing if objective.name == "robust" else None,
        simpo_gamma=objective.simpo_gamma if objective.name == "simpo" else None,
        credit_discount=objective.credit_discount if objective.name == "credit" else None,
        lambda_l2=objective.lambda_l2,
    )


def config_of(options: TrainOptions, manifest: Manifest) -> HeadConfig:
    """Return the configuration of the head that options ask for.

    Args:
        options: What is asked for.
        manifest: The manifest of the cache.
    """
    return head_config(
        manifest.base,
        options.head_type,
        num_layers=len(manifest.states.layers),
        pooled_size=manifest.states.pooled_size,
        expansion_size=options.expansion_size,
        rank=options.rank,
        dropout=options.dropout,
    )


def told(config: HeadConfig) -> str:
    """Return kind, sizes and costs of a head in one line."""
    sizes = ", ".join(
        f"{name} {size}"
        for name, size in config.sizes.items()
        if name not in ("layers", "vocabulary")
    )
    return (
        f"Head {config.kind}: {sizes}: {config.alignment_parameters:,} parameters in the "
        f"alignment network, {config.total_parameters:,} with the fusion layer; MFLOP a token: "
        f"training {config.training_flops / 1e6:,.0f}, decoding {config.decoding_flops / 1e6:,.0f}"
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


def _tell_of_expansion_size(size: int, manifest: Manifest) -> None:
    base = manifest.base
    if size != PUBLISHED_EXPANSION_SIZE:
        approximately = "" if base.parameters is not None else "about "
        _log.info(
            f"`expansion_size` {size}, for a head of at most a third of the base's {approximately}"
            f"{base_parameters(base):,} parameters; the published one is {PUBLISHED_EXPANSION_SIZE}"
        )
