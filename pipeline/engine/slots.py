"""Which rows of a step are steered, and how strongly, from the slots that requests have.

vLLM has two runners. In the first a slot is a row of the batch: requests move between slots, and
each slot has the list of its response's tokens. In the second a request keeps its slot, rows come
in another order at every step, and positions say how far each response is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.steering.strengths import Strength


@dataclass(frozen=True, kw_only=True)
class SteeredRows:
    """The rows of a step that heads act on.

    Attributes:
        rows: Their indices, ascending.
        alphas: For each row, one for each head.
    """

    rows: tuple[int, ...]
    alphas: tuple[tuple[float, ...], ...]


def is_steering(strength: Strength) -> bool:
    """Return whether a strength is ever other than 0."""
    return any(alpha for _, alpha in strength.points)


def alphas_at(strength: Strength, token: int) -> tuple[float, ...]:
    """Return the strength of each head at a token of the response, counted from 0."""
    return (strength.at(token),) if isinstance(strength, AlphaSchedule) else strength.at(token)


@dataclass(frozen=True)
class Answering:
    """A request in the first runner.

    Attributes:
        strength: Its strength.
        response: Tokens of its response, a list that vLLM appends to.
    """

    strength: Strength
    response: Sequence[int]


def rows_by_slot(slots: dict[int, Answering]) -> SteeredRows:
    """Return the steered rows of the first runner, where slots are rows."""
    found = {
        slot: alphas_at(request.strength, len(request.response))
        for slot, request in sorted(slots.items())
    }
    return _only_steered(found)


class Layout(Protocol):
    """What the second runner says of the rows of a step, one for each request.

    Attributes:
        idx_mapping_np: The slot of each row, [R], on the host.
        seq_lens_upper_bound_np: Tokens up to the one that each row predicts, [R] or
            more, on the host;
            exact without speculative decoding, which is refused.
    """

    idx_mapping_np: Any
    seq_lens_upper_bound_np: Any


@dataclass
class PermanentSlots:
    """The requests of the second runner.

    Attributes:
        strengths: Slot -> the strength of its request; slots that are not steered are left out.
    """

    strengths: dict[int, Strength] = field(default_factory=dict)

    def add(self, slot: int, strength: Strength) -> bool:
        """Take a request into a slot that another may have had; return whether it is steered."""
        self.strengths.pop(slot, None)
        if not is_steering(strength):
            return False
        self.strengths[slot] = strength
        return True

    def rows(self, layout: Layout, prompt_lengths: Any) -> SteeredRows:
        """Return the steered rows of a step.

        Args:
            layout: The rows of the step.
            prompt_lengths: Tokens of each slot's prompt, on the host.
        """
        found = {}
        slots = layout.idx_mapping_np.tolist()
        # There may be more of these: a graph that was captured is run with rows of padding.
        lengths = layout.seq_lens_upper_bound_np[: len(slots)].tolist()
        for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            strength = self.strengths.get(slot)
            token = length - int(prompt_lengths[slot])
            # What a row amid a prompt predicts is thrown away.
            if strength is not None and token >= 0:
                found[row] = alphas_at(strength, token)
        return _only_steered(found)


def _only_steered(found: dict[int, tuple[float, ...]]) -> SteeredRows:
    kept = {row: alphas for row, alphas in found.items() if any(alphas)}
    return SteeredRows(rows=tuple(kept), alphas=tuple(kept.values()))
