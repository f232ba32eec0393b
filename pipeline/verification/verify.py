"""`mav verify`: checks a cache's digests, compares it with the live base, repairs damage."""

from dataclasses import dataclass
from typing import Any

from mav.cache_schema.errors import CacheError
from mav.cache_schema.reader import listed
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import VerifyReport
from mav.cache_schema.verify import repair as repair_objects
from mav.cache_schema.verify import verify as verify_objects
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.verification.against_base import BaseComparison, verify_against_base
from mav.pipeline.verification.options import VerifyOptions


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


def verify(options: VerifyOptions) -> VerificationReport:
    """Check that a cache is complete and undamaged, and that it holds what its base computes.

    Args:
        options: The cache, and what to check.

    Raises:
        MAVError: There is no cache, it cannot be read at all, or it cannot be repaired.
    """
    objects = open_object_store(options.cache)
    with progress_bar(None, "Verifying", "B") as bar:

        def begin(total: int) -> None:
            bar.reset(total=total)

        stored = verify_objects(objects, full=options.full, begin=begin, progress=bar.update)
    if options.repair and stored.problems:
        repair_objects(objects, stored)
    base = None
    if options.against_base is not None:
        if not stored.sound:
            raise CacheError(
                f"{options.cache}: damaged or incomplete, so it was not compared with the base:"
                f"{listed(_problems(stored))}"
            )
        base = verify_against_base(options)
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
        if stored.problems:
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
    problems = [
        str(problem) if problem.block is None else f"block {problem.block}: {problem}"
        for problem in stored.problems
    ]
    if not stored.damaged_blocks and stored.committed < stored.blocks:
        problems.append(
            f"{stored.blocks - stored.committed} blocks are not written; `mav extract` resumes"
        )
    elif not stored.complete and not problems:
        problems.append(
            "all blocks are written but the cache is not marked complete; `mav extract` does it"
        )
    return problems
