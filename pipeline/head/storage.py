"""Reading a head's files: `model.safetensors`, and `config.json` with its kind, sizes and origin.

`config.json` has the size and CRC32C of the weights that belong to it. While a head is replaced,
its new weights have a hidden name made of these, until `config.json` names them and they can take
the place of the old ones (`pretrained.save_head`). So a folder always holds a whole head, and
weights that `config.json` does not name are refused. Nothing in a head is ever executed: tensors
come from safetensors, all else from JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import CacheError, HeadError, UsageError
from mav.cache_schema.manifest import Manifest
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.recommendation import CurvePoint as CurvePoint
from mav.pipeline.head.recommendation import Recommendation as Recommendation
from mav.pipeline.head.recommendation import recommendation_of
from mav.pipeline.runtime import hub, hub_errors

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
KIND: Final = "mav-alignment-head"


@dataclass(frozen=True, kw_only=True)
class MergedPart:
    """One of the heads that a head is the weighted sum of.

    Attributes:
        name: What it was called.
        alpha: Its part in the sum.
        digest: SHA-256 of the file with its weights.
        objective: Name of its objective.
        beta: Inverse temperature of that.
        steps: Optimizer steps taken.
    """

    name: str
    alpha: float
    digest: str
    objective: str
    beta: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class HeadOrigin:
    """What a head was trained from and how.

    Attributes:
        manifest: The manifest of the cache.
        objective: Name of the objective.
        beta: Its inverse temperature.
        held_out_fraction: Share of prompts that training did not see.
        steps: Optimizer steps taken.
        merged: The heads it is the weighted sum of; none of one that was trained.
        recommended: The strength to start from, where training was asked to find it.
    """

    manifest: Manifest
    objective: str
    beta: float
    held_out_fraction: float
    steps: int
    merged: tuple[MergedPart, ...] = ()
    recommended: Recommendation | None = None


def recorded_weights(folder: Path) -> dict[str, int] | None:
    """Return `size` and `crc32c` of the weights that `config.json` belongs to.

    None where they are not recorded, as in heads of earlier programs, or there is no readable
    configuration.
    """
    try:
        recorded: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())["weights"]
        return {"size": int(recorded["size"]), "crc32c": int(recorded["crc32c"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def weights_file(folder: Path, recorded: Mapping[str, int] | None) -> Path:
    """Return the file with a head's weights, under its hidden name while it has that."""
    if recorded is not None:
        pending = pending_weights(folder, recorded)
        if pending.is_file():
            return pending
    return folder / WEIGHTS


def pending_weights(folder: Path, recorded: Mapping[str, int]) -> Path:
    """Return the name of weights that have not replaced the former ones yet."""
    return folder / f".{WEIGHTS}.{recorded['size']}-{recorded['crc32c']:08x}"


def find_head(path_or_hub_id: str, revision: str | None = None) -> Path:
    """Return the folder of a head, downloading it from the hub if need be.

    Args:
        path_or_hub_id: Its folder, the output of a training, or a hub id.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        HeadError: There is none.
        UsageError: A revision is given for a folder.
    """
    path = Path(path_or_hub_id)
    if revision is not None and path.exists():
        raise UsageError(
            f"revision: got {revision!r}, but {path} is here and has no revisions; leave it out"
        )
    for folder in (path, path / "best", path / "last"):
        if (folder / CONFIG).is_file():
            return folder
    if path.exists():
        remedy = pickles_in(path) or " Name the folder that `mav train --output-dir` wrote."
        raise HeadError(f"{path}: no head here, expected {CONFIG} and {WEIGHTS}.{remedy}")
    if path_or_hub_id.count("/") != 1 or path_or_hub_id.startswith((".", "/", "~")):
        raise HeadError(f"{path_or_hub_id}: no such folder")
    try:
        folder = hub.download(path_or_hub_id, revision=revision, allow=[CONFIG, WEIGHTS])
    except Exception as error:
        reason = hub_errors.why(error, path_or_hub_id, "model", revision)
        raise HeadError(
            f"{path_or_hub_id}: no such folder here, and the hub did not give it: {reason}"
        ) from error
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            reason = hub_errors.why_not_there(
                path_or_hub_id, folder.name, name, hub_errors.PICKLES_REMEDY
            )
            raise HeadError(f"{path_or_hub_id}: {reason}")
    return folder


def pickles_in(path: Path) -> str:
    """Return why a pickle that is there is not read, or nothing."""
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name]
    pickles = [name for name in names if name.endswith((".pt", ".pth", ".bin", ".pkl"))]
    return (
        f" {pickles[0]} is a pickle, which can run code when loaded; MAV reads none."
        if pickles
        else ""
    )


def read_head_config(folder: Path) -> tuple[HeadConfig, HeadOrigin]:
    """Read kind, sizes and origin of a head without its weights.

    One that names no kind is an `mlp`, as all heads once were.

    Raises:
        HeadError: It is not a head's configuration.
    """
    path = folder / CONFIG
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.get("kind") != KIND:
            raise HeadError(f"{path}: kind {value.get('kind')!r}, expected {KIND!r}")
        origin = HeadOrigin(
            manifest=Manifest.from_json(value["cache"], str(path)),
            merged=tuple(MergedPart(**part) for part in value.get("merged", [])),
            recommended=recommendation_of(value.get("recommended")),
            **value["training"],
        )
        config = HeadConfig(**value["head"])
        _require_same_sizes(config, origin.manifest, path)
        return config, origin
    except HeadError:
        raise
    except CacheError as error:
        raise HeadError(str(error)) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise HeadError(f"{path}: not a head's configuration: {error}") from error


def _require_same_sizes(head: HeadConfig, cache: Manifest, path: Path) -> None:
    for name, got, expected in (
        ("num_layers", head.num_layers, len(cache.states.layers)),
        ("pooled_size", head.pooled_size, cache.states.pooled_size),
        ("vocab_size", head.vocab_size, cache.base.vocab_size),
        ("hidden_size", head.hidden_size, cache.base.hidden_size if head.acts_on_state else None),
    ):
        if got != expected:
            raise HeadError(
                f"{path}: head.{name}: got {got}, expected {expected}, as the cache it was trained "
                f"from has it. The file was changed; copy the head again."
            )
