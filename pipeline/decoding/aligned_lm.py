"""A base model whose logits heads steer, inside every forward pass.

Hooks take the states of the heads' layers as they pass, and add alpha * a to the logits the model
returns; a loss follows them. A head that acts on the state has alpha * f added to what the model's
own output embedding is given, so that scale, soft-cap and loss are the model's. A state of 16 bits
has too few digits for the sum; there the product takes alpha * f as rows of its own beside the
state's, which reads the weight once all the same, and the two products are added in float32.

Of several heads the sum is added: z + sum_i alpha_i a_i, and of those that act on the state
sum_i alpha_i f_i, so that they cost one product with the vocabulary together.

So all of `generate()` works unchanged, with one forward pass per token, and heads are computed
only where logits are. `docs/decisions/` says why either addition leaves the output embedding in its
place.

Shape legend: B sequences, S positions of the pass, T positions with logits, K layers, H hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.steering.pass_output import require_named, with_added
from mav.pipeline.head.model import AlignmentHead

_ToEach = float | Sequence[float | Sequence[float]] | Tensor


class AlignedLM:
    """A base with a head, or several, attached while the context is open.

    The hooks stay for as long as it is open, whatever alpha is: a compiled model does not notice
    hooks that come or go, but does notice whether they steer.

    Attributes:
        base: The base model.
        heads: The heads.
        layers: The layers of the base they read.
        base_logits: Logits of the latest pass before the heads' part, [B, T, vocab], while
            `keep_base_logits` is set.
        keep_base_logits: Whether to keep them; for as long as `steering` is open. For heads that
            act on the state the product with the vocabulary then has twice the rows, as it always
            has in 16 bits.
    """

    def __init__(
        self,
        base: BaseModel,
        head: AlignmentHead | Sequence[AlignmentHead],
        layers: tuple[int, ...],
        alpha: _ToEach = 0.0,
    ) -> None:
        """Prepare; hooks are registered on entering the context.

        Args:
            base: The base model.
            head: A head whose vocabulary is the base's, or several.
            layers: The layers of this base that it reads, and all of several.
            alpha: Strength, as `set_alpha` takes it.
        """
        self.base = base
        self._several = not isinstance(head, AlignmentHead)
        self.heads = (head,) if isinstance(head, AlignmentHead) else tuple(head)
        assert all(one.config.vocab_size == base.vocab_size for one in self.heads)
        assert all(one.config.num_layers == len(layers) for one in self.heads)
        self._on_state, self._on_logits = (
            tuple(n for n, one in enumerate(self.heads) if one.config.acts_on_state is acts)
            for acts in (True, False)
        )
        self.keep_base_logits = False
        self.base_logits: Tensor | None = None
        self.layers = layers
        self._depth = base.num_hidden_layers
        self._taps = base.hidden_state_hooks(layers)
        self._handles: list[RemovableHandle] = []
        self._logits_to_keep: int | Tensor = 0
        self._doubled = False
        self._apart: int | None = None
        self._to_logits: Tensor | None = None
        self.set_alpha(alpha)

    def __enter__(self) -> Self:
        assert not self._handles, "an aligned model cannot be joined twice at once"
        self._forget_compiled()
        self._taps.__enter__()
        model = self.base.model
        if self._on_state:
            embedding = model.get_output_embeddings()
            self._handles = [
                model.register_forward_pre_hook(self._begin, with_kwargs=True),
                embedding.register_forward_pre_hook(self._add_to_state),
                embedding.register_forward_hook(self._add_products),
                model.register_forward_hook(self._end, with_kwargs=True),
            ]
        else:
            self._handles = [model.register_forward_hook(self._add_to_logits, with_kwargs=True)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._taps.__exit__()
        self._forget_compiled()

    @property
    def head(self) -> AlignmentHead:
        """The head, where there is one alone."""
        (head,) = self.heads
        return head

    @property
    def device(self) -> torch.device:
        """Where the heads are."""
        return self.heads[0].device

    def set_alpha(self, alpha: _ToEach) -> None:
        """Set alpha for the following passes.

        Args:
            alpha: One for all; or one per request, [R], where B is R or, with beams or several
                responses per request, a multiple of it; or one per request and position, [R, T].
                Of several heads each of these has one for each head, in a last dimension; a number
                alone is that of all. A head is not computed where all of its alphas are 0, and
                where that is so of all, the base's logits are untouched.

        Raises:
            UsageError: An alpha is not a finite number.
        """
        values = torch.as_tensor(alpha, dtype=torch.float32)
        if not values.numel() or not values.isfinite().all():
            raise UsageError(f"alpha: got {alpha}, expected finite numbers")
        if not self._several or not values.dim():
            values = values[..., None].expand(*values.shape, len(self.heads))
        assert values.shape[-1] == len(self.heads)
        used = values.reshape(-1, len(self.heads)).any(0).tolist()
        self._taps.paused = self._off = not any(used)
        self._used_on_state, self._used_on_logits = (
            tuple(number for number in numbers if used[number])
            for numbers in (self._on_state, self._on_logits)
        )
        by_token = values.reshape(*values.shape[:-1], *[1] * (3 - values.dim()), len(self.heads))
        self._alphas = by_token.to(self.device)

    @contextmanager
    def steering(self, alpha: _ToEach) -> Iterator[None]:
        """Steer while the context is open; outside it the base is unchanged."""
        self.set_alpha(alpha)
        try:
            yield
        finally:
            self.set_alpha(0.0)
            self.keep_base_logits, self.base_logits = False, None
            # Of a pass that failed.
            self._taps.states.clear()
            if self.base.num_hidden_layers != self._depth:
                # transformers leaves it lowered where a draft of the first layers fails.
                self.base.config.num_hidden_layers = self._depth

    def _add_to_logits(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self.keep_base_logits:
            self.base_logits = output.logits
        if self._off:
            return output
        require_named(output)
        inputs = self._inputs(kwargs.get("logits_to_keep", 0), output.logits.shape[1])
        added = self._sum(self._used_on_logits, inputs)
        return output if added is None else with_added(model, (args, kwargs), output, added)

    def _begin(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.keep_base_logits and kwargs.get("labels") is not None:
            raise UsageError("labels: got some, expected none while the base's logits are kept")
        self._logits_to_keep = kwargs.get("logits_to_keep", 0)
        self._doubled, self._apart, self._to_logits = False, None, None

    def _add_to_state(self, embedding: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Put alpha f on the state, or under it where the sum would lose what f has."""
        state: Tensor = args[0]
        inputs = None if self._off else self._inputs(self._logits_to_keep, state.shape[1])
        self._to_logits = self._sum(self._used_on_logits, inputs)
        added = self._sum(self._used_on_state, inputs)
        if added is None:
            return None
        added = added.to(state.device)
        self._doubled = self.keep_base_logits
        if state.element_size() >= 4:
            rows = [state + added, *([state] if self._doubled else [])]
        else:
            # Of a state of 16 bits, only what reaches its last place would be left of f.
            rows, self._apart = [state, added.to(state.dtype)], len(state)
            if getattr(embedding, "bias", None) is not None:
                rows.append(torch.zeros_like(state[:1]))
        return (torch.cat(rows), *args[1:])

    def _add_products(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Add the products of state and alpha f in float32, where they were kept apart."""
        if self._apart is None:
            return None
        rows, products = self._apart, output.float()
        base, aligned = products[:rows], products[:rows] + products[rows : 2 * rows]
        if len(products) > 2 * rows:
            aligned -= products[2 * rows :]
        return torch.cat([aligned, base]) if self._doubled else aligned

    def _end(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        self._taps.states.clear()
        added, self._to_logits = self._to_logits, None
        if not self.keep_base_logits and added is None:
            return output
        require_named(output)
        if self.keep_base_logits:
            self.base_logits = output.logits
            if self._doubled:
                output.logits, self.base_logits = output.logits.chunk(2)
        return output if added is None else with_added(model, (args, kwargs), output, added)

    def _inputs(self, kept: int | Tensor, positions: int) -> dict[int, Tensor] | None:
        """Return what each head in use reads, [B, T, K, width], and forget the states of the pass.

        None in a draft by the first layers alone (`assistant_early_exit`): what it proposes is
        taken or left by a pass of all layers, which is steered.

        Args:
            kept: `logits_to_keep` of the pass.
            positions: How many positions have logits: not every model keeps as few as it is asked.
        """
        states = {**self._taps.states}
        self._taps.states.clear()
        if self.base.num_hidden_layers < self._depth:
            return None
        places = slice(-positions, None) if isinstance(kept, int) else kept
        states_BTKH = torch.stack(
            [_state(states, layer)[:, places].to(self.device) for layer in self.layers], dim=-2
        )
        if not self._several:
            return {0: states_BTKH}
        used = {n: self.heads[n] for n in (*self._used_on_state, *self._used_on_logits)}
        # Once for all heads that pool alike.
        pooled = {head.config.pooled_size: head for head in used.values()}
        by_size = {size: head.pooled(states_BTKH) for size, head in pooled.items()}
        return {n: by_size[head.config.pooled_size] for n, head in used.items()}

    def _sum(self, numbers: tuple[int, ...], inputs: dict[int, Tensor] | None) -> Tensor | None:
        """Return the sum of alpha times what heads add, float32 [B, T, size]; None of no heads."""
        if inputs is None:
            return None
        total: Tensor | None = None
        for number in numbers:
            vector = self.vector(inputs[number], number)
            if len(vector) % len(self._alphas):
                raise UsageError(
                    f"alpha: got {len(self._alphas)} strengths, but {len(vector)} rows are "
                    f"decoded; give one for all, or one for each request"
                )
            alphas = self._alphas[..., number : number + 1]
            part = alphas.repeat_interleave(len(vector) // len(alphas), dim=0) * vector
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

    def _forget_compiled(self) -> None:
        """Drop the base's compiled forward pass, which holds earlier hooks."""
        if hasattr(self.base.model, "_compiled_call"):
            del self.base.model._compiled_call
            torch.compiler.reset()


def _state(states: Mapping[int, Tensor], layer: int) -> Tensor:
    """Return a layer's input in a pass, [B, S, hidden]."""
    if layer not in states:
        raise UsageError(
            f"a pass of the base ran without its layer {layer}, whose state the head reads; run "
            f"all layers, or steer with alpha 0"
        )
    return states[layer]
