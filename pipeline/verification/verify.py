"""`mav verify`: checks a cache's digests, compares it with the live base, repairs damage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mav.cache_schema.errors import CacheError
from mav.cache_schema.reader import listed
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import VerifyReport
from mav.cache_schema.verify import repair as repair_objects
from mav.cache_schema.verify import verify as verify_objects
from mav.pipeline.base.loading import DeviceMap
from mav.pipeline.runtime.compute_dtype import AUTO, Dtype
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.verification.against_base import BaseComparison, verify_against_base


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """Result of a verification.

    Attributes:
        stored: Of the stored objects.
        base: Of the pairs that were run through the base, if any were.
    """

    stored: VerifyReport
    base: BaseComparison | None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.stored.sound and not (self.base and self.base.differing)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        return self.stored.to_json() | {
            "sound": self.sound,
            "against_base": self.base.to_json() if self.base else None,
        }


def verify(
    cache: str | Path,
    *,
    full: bool = True,
    pairs: int | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    repair: bool = False,
    dtype: Dtype = AUTO,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    gguf_cache: bool = True,
) -> VerificationReport:
    """Check that a cache is complete and undamaged, and that it holds what its base computes.

    Args:
        cache: Folder or URL.
        full: Read everything and compare all digests, rather than sizes alone.
        pairs: Pairs to run through the live base again; None skips that.
        base_model: Where the base is now; by default where it was.
        datasets: Where the cache's data sets are now, in its order; by default where they were.
        repair: Mark damaged blocks, so that the next extraction computes them again.
        dtype: Type the base computes in; `auto` is what the cache was computed in.
        device: Where the base runs.
        device_map: How it is spread over several devices, in place of `device`.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.

    Raises:
        MAVError: There is no cache, it cannot be read at all, or it cannot be repaired.
    """
    objects = open_object_store(cache)
    with progress_bar(None, "Verifying", "B") as bar:

        def begin(total: int) -> None:
            bar.reset(total=total)

        stored = verify_objects(objects, full=full, begin=begin, progress=bar.update)
    if repair and (stored.damaged_blocks or stored.damaged_layout):
        repair_objects(objects, stored)
    base = None
    if pairs is not None:
        if not stored.sound:
            raise CacheError(
                f"{cache}: damaged or incomplete, so it was not compared with the base:"
                f"{listed(_problems(stored))}"
            )
        base = verify_against_base(
            cache,
            pairs,
            base_model=base_model,
            datasets=datasets,
            dtype=dtype,
            device=device,
            device_map=device_map,
            gguf_cache=gguf_cache,
        )
    return VerificationReport(stored=stored, base=base)


def screen(found: VerificationReport) -> str:
    """Format the report for the terminal."""
    stored = found.stored
    checked = f"{stored.bytes / 1e9:.2f} GB read" if stored.full else "sizes only"
    lines = [
        f"{stored.location}: {stored.committed} of {stored.blocks} blocks committed, "
        f"{stored.objects} objects, {checked}"
    ]
    problems = _problems(stored)
    if problems:
        lines.append(f"{len(problems)} problems:{listed(problems)}")
        if stored.damaged_blocks or stored.damaged_layout:
            lines.append(
                "`mav verify --repair` marks what is damaged; the extraction command then writes "
                "it again."
            )
    if stored.unknown:
        lines.append(
            f"{len(stored.unknown)} objects that are not part of it:{listed(stored.unknown)}"
        )
    if found.base:
        worst = ", ".join(f"{name} {error:.1e}" for name, error in found.base.errors.items())
        lines.append(
            f"{found.base.pairs} pairs run again, largest relative errors: {worst} "
            f"(tolerance {found.base.tolerance:g})"
        )
        lines += [f"  - pair {pair}: {text}" for pair, text in found.base.differing.items()]
    lines.append("Sound." if found.sound else "Not sound.")
    return "\n".join(lines)


def _problems(stored: VerifyReport) -> list[str]:
    problems = [str(problem) for problem in stored.damaged_layout]
    for block, of_block in stored.damaged_blocks.items():
        problems += [f"block {block}: {problem}" for problem in of_block]
    if not stored.damaged_blocks and stored.committed < stored.blocks:
        problems.append(
            f"{stored.blocks - stored.committed} blocks are not written; `mav extract` goes on"
        )
    elif not stored.complete and not problems:
        problems.append(
            "all blocks are written but the cache is not marked complete; `mav extract` does it"
        )
    return problems
