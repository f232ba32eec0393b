"""The bases of a server, and the short names by which requests choose them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.loading import preview_base
from mav.pipeline.base.source import BaseSource
from mav.pipeline.decoding.attach import check_compatible
from mav.pipeline.decoding.options import Heads, InferenceOptions
from mav.pipeline.decoding.steering.trained_heads import TrainedHeads


@dataclass(frozen=True, kw_only=True)
class ServedBase:
    """A base that requests can choose.

    Attributes:
        name: Name in requests.
        path: Argument of `switch_base_model`: a hub id, a folder or a `.gguf` file.
        gguf_file: GGUF file inside the folder or repository.
        revision: Commit of a hub repository.
    """

    name: str
    path: str
    gguf_file: str | None = None
    revision: str | None = None


def served_bases(sources: Sequence[BaseSource]) -> tuple[ServedBase, ...]:
    """Name bases: by hub id, or by the shortest end of the path that no other path has.

    Raises:
        UsageError: A base is given twice.
    """
    full = [_parts(source) for source in sources]
    if len(set(full)) < len(full):
        twice = next(
            source.id for source, parts in zip(sources, full, strict=True) if full.count(parts) > 1
        )
        raise UsageError(f"bases: got {twice} twice, expected different bases")
    bases = []
    for source, parts in zip(sources, full, strict=True):
        others = [other for other in full if other != parts]
        length = next(
            (
                length
                for length in range(1, len(parts))
                if not any(other[-length:] == parts[-length:] for other in others)
            ),
            len(parts),
        )
        is_file = source.id.endswith(".gguf")
        bases.append(
            ServedBase(
                name="/".join(parts[-length:]),
                path=source.id,
                gguf_file=None if is_file else source.gguf_file,
                revision=source.revision,
            )
        )
    return tuple(bases)


def renamed(bases: Sequence[ServedBase], names: Sequence[str]) -> tuple[ServedBase, ...]:
    """Return bases with these names, one for each; with their own if there are no names."""
    if not names:
        return tuple(bases)
    pairs = zip(bases, names, strict=True)
    return tuple(replace(base, name=name) for base, name in pairs)


def check_bases(head: Heads, sources: Sequence[BaseSource], options: InferenceOptions) -> None:
    """Check that bases are compatible with a head, or several, without loading their weights.

    Args:
        head: Folder of a head or of a training run, or a hub id; or several by name.
        sources: The bases.
        options: How they will be loaded and attached.

    Raises:
        MAVError: A base is not compatible with the head, or is not a base.
    """
    trained = TrainedHeads.load(head)
    for source in sources:
        source = with_copy(source, gguf_cache=options.gguf_cache)
        preview = preview_base(source, options.quantize)
        _, differences = check_compatible(preview, trained, options)
        differences.log()


def _parts(source: BaseSource) -> tuple[str, ...]:
    if not Path(source.id).is_absolute():
        return (source.id,)
    return Path(source.id.removesuffix(".gguf")).parts
