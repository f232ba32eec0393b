"""Giving a head the weights of its folder, checked against what its configuration says."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from mav.cache_schema.errors import HeadError
from mav.pipeline.head.storage import CONFIG, WEIGHTS, pickles_in, recorded_weights, weights_file
from mav.pipeline.runtime.durable_files import measure


def load_weights(head: nn.Module, folder: Path, device: str) -> str:
    """Give a head on `meta` the weights of its folder.

    Args:
        head: The head.
        folder: Its folder.
        device: Where the weights go.

    Returns:
        SHA-256 of their file.

    Raises:
        HeadError: They are missing, damaged, or those of another head.
    """
    recorded = recorded_weights(folder)
    path = weights_file(folder, recorded)
    if not path.is_file():
        raise HeadError(
            f"{folder}: no {WEIGHTS} beside {CONFIG}."
            + (pickles_in(folder) or " Copy the whole folder again.")
        )
    try:
        tensors = safetensors.torch.load_file(path, device=device)
    except (OSError, safetensors.SafetensorError) as error:
        raise HeadError(f"{path}: cannot be read as safetensors: {error}") from error
    _require_all(tensors, head, path)
    digest = hashlib.sha256()
    measured = measure(path, digest.update)
    if recorded is not None and measured != recorded:
        raise HeadError(
            f"{path}: got weights of {measured}, expected {recorded}, as {CONFIG} has it. The file "
            f"is damaged or belongs to another {CONFIG}: copy the whole folder again. If you "
            f"changed the weights yourself, remove `weights` from {CONFIG}."
        )
    head.load_state_dict(tensors, assign=True)
    return digest.hexdigest()


def require_finite(head: nn.Module, folder: Path) -> None:
    """Refuse a head with weights that are not finite numbers.

    Raises:
        HeadError: Naming the first of them.
    """
    path = folder / WEIGHTS
    for name, weight in head.state_dict().items():
        # One pass that keeps nothing: a mask of 600 million weights would take as long as loading.
        least, most = weight.aminmax()
        if not (least.isfinite() and most.isfinite()):
            raise HeadError(
                f"{path}: {name} holds values that are not finite in "
                f"{str(weight.dtype).removeprefix('torch.')}, expected finite ones. The training "
                f"diverged, or the type is too narrow: train with a lower `learning_rate`, or use "
                f"`dtype` bfloat16."
            )


def _require_all(tensors: Mapping[str, Tensor], head: nn.Module, path: Path) -> None:
    """Refuse weights that are missing, unknown, of another shape, or not of a floating type."""
    expected = head.state_dict()
    problems = [
        *(f"{name} is missing" for name in expected if name not in tensors),
        *(f"{name} is not one of its weights" for name in sorted(tensors) if name not in expected),
    ]
    for name, weight in expected.items():
        got = tensors.get(name)
        if got is not None and got.shape != weight.shape:
            problems.append(f"{name}: got shape {list(got.shape)}, expected {list(weight.shape)}")
        elif got is not None and not got.is_floating_point():
            problems.append(f"{name}: got {got.dtype}, expected floating-point numbers")
    if problems:
        raise HeadError(
            f"{path}: not the head {CONFIG} describes: {'; '.join(problems)}. Copy the whole "
            f"folder again."
        )
