"""Heads read and written with where they came from."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mav.cache_schema.portable import portable
from mav.pipeline.head.model import AlignmentHead, head_in
from mav.pipeline.head.storage import (
    CONFIG,
    KIND,
    WEIGHTS,
    HeadOrigin,
    find_head,
    read_head_config,
)
from mav.pipeline.runtime.durable_folder import atomic_write_directory


@dataclass(frozen=True, kw_only=True)
class StoredHead:
    """A head and where it came from.

    Attributes:
        head: The head, in eval mode.
        origin: What it was trained from.
        path: Its folder.
    """

    head: AlignmentHead
    origin: HeadOrigin
    path: Path


def save_head(
    head: AlignmentHead,
    origin: HeadOrigin,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a head so that the folder is there whole or as it was before.

    Args:
        head: The head.
        origin: What it was trained from and how.
        folder: Where to.
        weights: Its weights on the CPU, where they are not all in the head itself.
    """
    if weights is None:
        weights = {name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}
    config = {
        "kind": KIND,
        "head": dataclasses.asdict(head.config),
        "parameters": {
            "alignment": head.alignment_parameters(),
            "total": head.total_parameters(),
        },
        "training": {
            "objective": origin.objective,
            "beta": origin.beta,
            "held_out_fraction": origin.held_out_fraction,
            "steps": origin.steps,
        },
        "cache": portable(origin.manifest).to_json(),
    }
    atomic_write_directory(folder, {CONFIG: config}, {WEIGHTS: dict(weights)})


def load_head(
    path_or_hub_id: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> StoredHead:
    """Load a head and its origin; see `AlignmentHead.from_pretrained`."""
    folder = find_head(path_or_hub_id)
    config, origin = read_head_config(folder)
    head = head_in(folder, config, dtype=dtype, device=device)
    return StoredHead(head=head, origin=origin, path=folder)
