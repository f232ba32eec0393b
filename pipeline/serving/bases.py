"""The bases a server offers, under the short names requests call them by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.model import preview_base
from mav.pipeline.base.source import BaseSource
from mav.pipeline.decoding.attach import AttachOptions, check_compatible, load_trained
from mav.pipeline.runtime.choices import Quantize


@dataclass(frozen=True, kw_only=True)
class ServedBase:
    """A base that requests can choose.

    Attributes:
        name: What requests call it.
        path: What it is loaded from, as `switch_base_model` takes it.
        gguf_file: File inside of that.
        revision: Commit of a hub repository.
    """

    name: str
    path: str
    gguf_file: str | None = None
    revision: str | None = None


def served_bases(sources: Sequence[BaseSource]) -> tuple[ServedBase, ...]:
    """Name bases: hub ids as they are, files and folders by as much of their path as it takes.

    Raises:
        UsageError: One is there twice.
    """
    full = [_parts(source) for source in sources]
    if len(set(full)) < len(full):
        twice = next(
            source.id for source, parts in zip(sources, full, strict=True) if full.count(parts) > 1
        )
        raise UsageError(f"base_model: got {twice} twice, expected different bases")
    found = []
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
        found.append(
            ServedBase(
                name="/".join(parts[-length:]),
                path=source.id,
                gguf_file=None if is_file else source.gguf_file,
                revision=source.revision,
            )
        )
    return tuple(found)


def require_all_fit(
    head: str,
    sources: Sequence[BaseSource],
    rules: AttachOptions,
    quantize: Quantize | None,
) -> None:
    """Check that bases, quantized as they will be, belong to a head, without loading their weights.

    Raises:
        MAVError: One does not, or is not a base.
    """
    trained = load_trained(head)
    for source in sources:
        source = with_copy(source, gguf_cache=rules.gguf_cache)
        check_compatible(preview_base(source, quantize), trained, rules)


def _parts(source: BaseSource) -> tuple[str, ...]:
    if not Path(source.id).is_absolute():
        return (source.id,)
    return Path(source.id.removesuffix(".gguf")).parts
