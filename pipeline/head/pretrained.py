"""Loading heads together with their origin."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mav.pipeline.head.model import AlignmentHead, load_from_folder
from mav.pipeline.head.saving import save_head as save_head
from mav.pipeline.head.storage import (
    HeadOrigin,
    find_head,
    read_head_config,
)
from mav.pipeline.runtime.compute_dtype import Dtype, resolve_dtype


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


def load_head(
    path_or_hub_id: str,
    *,
    revision: str | None = None,
    dtype: Dtype = torch.float32,
    device: str = "cpu",
) -> StoredHead:
    """Load a head and its origin.

    Args:
        path_or_hub_id: As in `AlignmentHead.from_pretrained`.
        revision: Likewise.
        dtype: Element type to load it in.
        device: Where to put it.

    Raises:
        HeadError: There is no head, or its files are not those of a head.
    """
    folder = find_head(path_or_hub_id, revision)
    config, origin = read_head_config(folder)
    head, digest = load_from_folder(
        folder, config, dtype=resolve_dtype(dtype, device), device=device
    )
    head.origin = origin
    return StoredHead(head=head, origin=origin, path=folder, digest=digest)


def recommended_alpha(path_or_hub_id: str) -> float | None:
    """Return the strength that a head is recommended with, or None where it has none.

    Args:
        path_or_hub_id: As in `AlignmentHead.from_pretrained`.

    Raises:
        HeadError: There is no head, or its files are not those of a head.
    """
    found = read_head_config(find_head(path_or_hub_id))[1].recommended
    return None if found is None else found.alpha
