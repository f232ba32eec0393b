"""How many examples property tests try, by profile: `ci`, or `thorough` for a long search."""

import os
from typing import Final

from hypothesis import HealthCheck, settings

_EXAMPLES: Final = {"ci": 50, "thorough": 1000}


def load_profile() -> None:
    """Load the profile that `HYPOTHESIS_PROFILE` names, else `ci`."""
    for name, count in _EXAMPLES.items():
        # Machines are slow at times; a property test looks for wrong results, not for late ones.
        settings.register_profile(
            name,
            max_examples=count,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def examples(share: float) -> int:
    """Return this many times the examples of the profile in use, at least one."""
    return max(1, round(share * settings().max_examples))
