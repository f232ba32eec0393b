"""Heads with the alphas and limits in force, and the sum of what they add.

Shape legend: R requests, B sequences, T positions with logits, N positions that are steered, K
layers, H hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mav.cache_schema.errors import UsageError
from mav.pipeline.head.model import AlignmentHead

ToEach = float | Sequence[float | Sequence[float]] | Tensor
"""Alphas: see `WeightedHeads.set_alpha`."""
Limits = float | None | Sequence[float | None]
"""Entropies of the base in nats: one for all requests, or one for each; None steers every token."""


class WeightedHeads:
    """Heads, and how strongly each acts where.

    Attributes:
        heads: The heads.
        on_state: Numbers of those that act on the base's last state.
        off: Whether all alphas are 0.
        limited: Whether a request has a limit.
        used_on_state: Numbers of those that act on the state and have an alpha other than 0.
        used_on_logits: Likewise of those that act on the logits.
    """

    def __init__(self, heads: Sequence[AlignmentHead], *, several: bool) -> None:
        """Begin with alpha 0 and no limit.

        Args:
            heads: The heads.
            several: Whether alphas are given for each of them; else there is one head.
        """
        self.heads = tuple(heads)
        self._several = several
        self.on_state, self._on_logits = (
            tuple(n for n, one in enumerate(heads) if one.config.acts_on_state is acts)
            for acts in (True, False)
        )
        self.set_alpha(0.0)
        self.set_limits(None)

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return self.heads[0].device

    def set_alpha(self, alpha: ToEach) -> None:
        """Set alpha for the following passes; see `AlignedLM.set_alpha`.

        Raises:
            UsageError: An alpha is not a finite number.
        """
        values = torch.as_tensor(alpha, dtype=torch.float32)
        if not values.numel() or not values.isfinite().all():
            raise UsageError(f"alpha: got {alpha}, expected finite numbers")
        if not self._several or not values.dim():
            values = values[..., None].expand(*values.shape, len(self.heads))
        assert values.shape[-1] == len(self.heads)
        by_token = values.reshape(*values.shape[:-1], *[1] * (3 - values.dim()), len(self.heads))
        used = values.reshape(-1, len(self.heads)).any(0).tolist()
        self.off = not any(used)
        self.used_on_state, self.used_on_logits = (
            tuple(number for number in numbers if used[number])
            for numbers in (self.on_state, self._on_logits)
        )
        self._alphas = by_token.to(self.device)
        # Left where it was made, so that it can be read without waiting for a device.
        self._steered = by_token.any(-1)

    def set_limits(self, above: Limits) -> None:
        """Steer only tokens at which the base's entropy is above a limit; every token if None.

        Raises:
            UsageError: A limit is not a number from 0 on.
        """
        each = [above] if above is None or isinstance(above, int | float) else [*above]
        if not all(limit is None or 0 <= limit < float("inf") for limit in each):
            raise UsageError(f"steer_above: got {above}, expected nats, 0 or more")
        self.limited = any(limit is not None for limit in each)
        limits = [-torch.inf if limit is None else limit for limit in each]
        self._limits = torch.tensor(limits, dtype=torch.float32)[:, None].to(self.device)

    def where(self, entropies: Tensor) -> Tensor:
        """Return which positions of a pass are steered, bool [B, T].

        Args:
            entropies: Of the base's distributions, float32 [B, T].
        """
        rows = len(entropies)
        above = entropies.to(self.device) > _for_rows(self._limits, rows, "steer_above")
        self._steered = above & _for_rows(self._alphas.any(-1), rows, "alpha")
        return self._steered

    def steered_last(self, rows: int) -> list[bool]:
        """Return of each sequence whether heads were added at the latest pass's last position."""
        found: list[bool] = _for_rows(self._steered[:, -1], rows, "alpha").tolist()
        return found

    def inputs(self, states: Tensor) -> dict[int, Tensor]:
        """Return what each head in use reads, by number.

        Args:
            states: Of the layers, [..., K, H].
        """
        used = {n: self.heads[n] for n in (*self.used_on_state, *self.used_on_logits)}
        if not self._several:
            return dict.fromkeys(used, states)
        # Once for all heads that pool alike.
        pooled = {head.config.pooled_size: head for head in used.values()}
        by_size = {size: head.pooled(states) for size, head in pooled.items()}
        return {n: by_size[head.config.pooled_size] for n, head in used.items()}

    def total(
        self, numbers: Sequence[int], inputs: dict[int, Tensor] | None, where: Tensor | None
    ) -> Tensor | None:
        """Return the sum of alpha times what heads add, float32; None of no heads.

        Args:
            numbers: The heads.
            inputs: What each reads, [B, T, K, width]; or [N, K, width] of the positions that are
                steered. None where nothing is.
            where: These positions, bool [B, T], or None for all.
        """
        if inputs is None:
            return None
        total: Tensor | None = None
        for number in numbers:
            vector = self.vector(inputs[number], number)
            alphas = self._alphas[..., number : number + 1]
            if where is None:
                alphas = _for_rows(alphas, len(vector), "alpha")
            else:
                alphas = _for_rows(alphas, len(where), "alpha").expand(*where.shape, 1)[where]
            part = alphas * vector
            total = part if total is None else total + part
        return total

    def vector(self, states: Tensor, number: int = 0) -> Tensor:
        """Return what a head adds at alpha 1, float32 [..., vocab] or [..., hidden].

        Args:
            states: [..., K, width].
            number: Of the head.
        """
        with torch.no_grad():
            vector: Tensor = self.heads[number](states).float()
        return vector


def _for_rows(values: Tensor, rows: int, name: str) -> Tensor:
    """Return values of requests, [R, ...], for the rows that are decoded, [B, ...].

    Raises:
        UsageError: B is no multiple of R.
    """
    if rows % len(values):
        kind = "strengths" if name == "alpha" else "limits"
        raise UsageError(
            f"{name}: got {len(values)} {kind}, but {rows} rows are decoded; give one for all, or "
            f"one for each request"
        )
    return values.repeat_interleave(rows // len(values), dim=0)
