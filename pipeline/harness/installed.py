"""Checks that lm-eval is installed."""

from importlib.util import find_spec

from mav.cache_schema.errors import UsageError


def require_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        UsageError: It is not.
    """
    if find_spec("lm_eval") is None:
        raise UsageError(
            "lm-eval, which runs the tasks, is not installed; pip install 'mav-align[eval]'"
        )
