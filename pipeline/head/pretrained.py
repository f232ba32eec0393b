"""Saving and loading heads together with their origin."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mav.cache_schema.portable import portable
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead, load_from_folder
from mav.pipeline.head.storage import (
    CONFIG,
    KIND,
    WEIGHTS,
    HeadOrigin,
    find_head,
    pending_weights,
    read_head_config,
    recorded_weights,
    weights_file,
)
from mav.pipeline.runtime.compute_dtype import Dtype, resolve_dtype
from mav.pipeline.runtime.durable_files import (
    measure,
    partial_name,
    sync_file,
    sync_parents,
    write_file,
    write_tensors,
)


@dataclass(frozen=True, kw_only=True)
class StoredHead:
    """A head and where it came from.

    Attributes:
        head: The head, in eval mode.
        origin: What it was trained from.
        path: Its folder.
        digest: SHA-256 of the file with its weights.
    """

    head: AlignmentHead
    origin: HeadOrigin
    path: Path
    digest: str


def save_head(
    head: AlignmentHead,
    origin: HeadOrigin,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a head so that the folder always holds a whole one: the new one, or the one before.

    Args:
        head: The head.
        origin: What it was trained from and how.
        folder: Where to; made if it does not exist.
        weights: Its weights, where they are not all in the head itself.

    Raises:
        OSError: It cannot be written; the head that was there stays.
        HeadError: safetensors cannot hold the weights; likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _settle(folder)  # or what a killed writer left could be taken for the new weights
    try:
        partial = partial_name(folder / WEIGHTS)
        write_tensors(partial, head.state_dict() if weights is None else weights)
        recorded = measure(partial)
        sync_file(partial)
        partial.replace(pending_weights(folder, recorded))
        sync_file(folder)
        # From here on the new weights are the head's, whatever name they have.
        config = json.dumps(_config(head.config, origin, recorded), indent=1)
        write_file(folder / CONFIG, config.encode())
    finally:
        _settle(folder)
        with contextlib.suppress(OSError):
            folder.rmdir()  # made here, if nothing is in it
    sync_parents(folder)


def _settle(folder: Path) -> None:
    """Give the head's weights their name, and remove weights of a head that was not written."""
    recorded = recorded_weights(folder)
    weights = weights_file(folder, recorded)
    if weights.name != WEIGHTS:
        weights.replace(folder / WEIGHTS)
        sync_file(folder)
    for path in folder.iterdir():
        if path.name.startswith((f".{WEIGHTS}.", f".{CONFIG}.")):
            path.unlink()


def _config(sizes: HeadConfig, origin: HeadOrigin, weights: dict[str, int]) -> dict[str, Any]:
    return {
        "kind": KIND,
        "head": sizes.to_json(),
        "parameters": {
            "alignment": sizes.alignment_parameters,
            "total": sizes.total_parameters,
        },
        "weights": weights,
        "training": {
            "objective": origin.objective,
            "beta": origin.beta,
            "held_out_fraction": origin.held_out_fraction,
            "steps": origin.steps,
        },
        **({"merged": [asdict(part) for part in origin.merged]} if origin.merged else {}),
        "cache": portable(origin.manifest).to_json(),
    }


def load_head(
    path_or_hub_id: str, *, dtype: Dtype = torch.float32, device: str = "cpu"
) -> StoredHead:
    """Load a head and its origin.

    Args:
        path_or_hub_id: As in `AlignmentHead.from_pretrained`.
        dtype: Element type to load it in.
        device: Where to put it.

    Raises:
        HeadError: There is no head, or its files are not those of a head.
    """
    folder = find_head(path_or_hub_id)
    config, origin = read_head_config(folder)
    head, digest = load_from_folder(
        folder, config, dtype=resolve_dtype(dtype, device), device=device
    )
    head.origin = origin
    return StoredHead(head=head, origin=origin, path=folder, digest=digest)
