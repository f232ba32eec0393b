"""Which pairs are kept out of training.

The decision hashes the prompt alone, so it is the same in every cache of the same texts, of any
base; all responses to a prompt fall on the same side, and a pair once held out stays so. A data set
may also be for evaluation alone; then no pair with one of its prompts is trained on, whichever data
set that pair is from.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mav.pipeline.runtime.choices import Split


@dataclass(frozen=True, kw_only=True)
class PairSubset:
    """A part of a cache's pairs.

    Attributes:
        split: The part.
        fraction: Share of prompts that are held out, from 0 to 1, beside those of data sets for
            evaluation alone.
    """

    split: Split
    fraction: float = 0.0


def in_subset(
    prompt_id: NDArray[np.uint64],
    subset: PairSubset,
    evaluation_only: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Return, for each pair, whether it belongs to the subset.

    Args:
        prompt_id: uint64 [pairs].
        subset: The subset.
        evaluation_only: bool [pairs], those of data sets that are for evaluation alone.
    """
    if subset.split == "all":
        return np.ones(len(prompt_id), dtype=np.bool_)
    # Prompt ids are uniform over 64 bits; the upper half decides, which float64 holds exactly.
    upper: NDArray[Any] = (prompt_id >> np.uint64(32)).astype(np.float64)
    held_out: NDArray[np.bool_] = upper < subset.fraction * 2.0**32
    if evaluation_only is not None and evaluation_only.any():
        held_out |= np.isin(prompt_id, prompt_id[evaluation_only])
    return held_out if subset.split == "held-out" else ~held_out
