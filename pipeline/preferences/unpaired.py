"""Rows of one response with a label, as KTO takes them: paired within their prompt.

The first good completion of a prompt is paired with its first bad one, the second with the second,
and so on; what is left over is counted. Source: Ethayarajh et al. 2024, "KTO: Model Alignment as
Prospect Theoretic Optimization", and TRL's `KTOTrainer` for the columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.pairs import PreferencePair, ReadCounts, Response, prompt_id, to_pair
from mav.pipeline.preferences.rows import ANSWERS, COMPLETION, LABEL, read_response

_GOOD: Final = (True, 1, "true", "True", "1")
_BAD: Final = (False, 0, "false", "False", "0")
SECOND: Final = "second_of_a_pair"
"""Counts rows that went into a pair beside another row, so that rows are pairs and causes."""
_ROW_OF_ONE: Final = (COMPLETION, LABEL)


def is_unpaired(row: Any) -> bool:
    """Return whether a row is one completion with a label, and no pair."""
    return (
        isinstance(row, Mapping)
        and all(row.get(name) is not None for name in _ROW_OF_ONE)
        and all(row.get(name) is None for name in ANSWERS)
    )


@dataclass
class _Prompt:
    """The completions of a prompt, good and bad, each with the number of its row."""

    good: list[tuple[int, Response]] = field(default_factory=list)
    bad: list[tuple[int, Response]] = field(default_factory=list)


def pair_up(
    rows: Iterator[tuple[int, str, Any]], counts: ReadCounts, name: str, *, held_out: bool
) -> Iterator[PreferencePair]:
    """Yield the pairs of rows with labels, after all of them are read.

    Args:
        rows: Number, place and contents of each row.
        counts: Counts rows that came into no pair, by cause.
        name: What the data set is called.
        held_out: Whether prompts are to be noted as held out.

    Raises:
        DataError: A row has another form, or no prompt has a good and a bad completion.
    """
    prompts: dict[int, _Prompt] = {}
    for number, place, row in rows:
        is_good = _is_good(row, place)
        response = read_response(row, COMPLETION, place)
        if isinstance(response, str):
            counts.dropped[response] += 1
            continue
        key = prompt_id(response.prompt)
        if held_out:
            counts.held_out_prompts.add(key)
        kept = prompts.setdefault(key, _Prompt())
        (kept.good if is_good else kept.bad).append((number, response))
    if not any(prompt.good and prompt.bad for prompt in prompts.values()):
        good, bad = (
            sum(len(getattr(prompt, label)) for prompt in prompts.values())
            for label in ("good", "bad")
        )
        raise DataError(
            f"{name}: got {good} good and {bad} bad completions of {len(prompts)} prompts, of "
            f"which none has both. A pair is two completions of one prompt, so such data cannot "
            f"train a head; sample the other completion of each prompt first."
        )
    for prompt in prompts.values():
        yield from _pairs_of(prompt, counts)


def _pairs_of(prompt: _Prompt, counts: ReadCounts) -> Iterator[PreferencePair]:
    for (number, good), (_, bad) in zip(prompt.good, prompt.bad, strict=False):
        pair = to_pair([good, bad], [], number)
        if isinstance(pair, str):
            counts.dropped[pair] += 2
        else:
            counts.dropped[SECOND] += 1
            yield pair
    over = len(prompt.good) - len(prompt.bad)
    if over:
        lacking = "no_rejected_completion" if over > 0 else "no_chosen_completion"
        counts.dropped[lacking] += abs(over)


def _is_good(row: Any, place: str) -> bool:
    if not is_unpaired(row):
        got = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(
            f"{place}: got {got}, expected 'prompt', 'completion' and 'label', as in the first row"
        )
    label = row[LABEL]
    if label in _GOOD:
        return True
    if label in _BAD:
        return False
    raise DataError(f"{place}: got label {label!r}, expected true or false")
