"""Writing a head's folder, so that it always holds a whole head: the new one, or the one before."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mav.cache_schema.portable import portable
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.recommendation import Recommendation
from mav.pipeline.head.storage import (
    CONFIG,
    KIND,
    WEIGHTS,
    HeadOrigin,
    pending_weights,
    recorded_weights,
    weights_file,
)
from mav.pipeline.ops.tensor_files import write_tensors
from mav.pipeline.runtime.durable_files import (
    measure,
    partial_name,
    sync_file,
    sync_parents,
    write_file,
)


class SavedModule(Protocol):
    """A head, as far as it is saved."""

    config: HeadConfig

    def state_dict(self) -> dict[str, Any]:
        """Return its weights."""


def save_head(
    head: SavedModule,
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
        **({"recommended": asdict(origin.recommended)} if origin.recommended else {}),
        **({"merged": [asdict(part) for part in origin.merged]} if origin.merged else {}),
        "cache": portable(origin.manifest).to_json(),
    }


def write_recommendation(folder: Path, found: Recommendation) -> None:
    """Note a recommended strength in the configuration of a head that is there."""
    path = folder / CONFIG
    config = json.loads(path.read_bytes())
    config["recommended"] = asdict(found)
    write_file(path, json.dumps(config, indent=1).encode())
