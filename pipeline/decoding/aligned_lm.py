"""A base model whose logits a head steers, inside every forward pass.

Hooks take the states of the head's layers as they pass, and add alpha * a to the logits the model
returns; a loss follows them. A head that acts on the state has alpha * f added to what the model's
own output embedding is given, so that scale, soft-cap and loss are the model's. A state of 16 bits
has too few digits for the sum; there the product takes alpha * f as rows of its own beside the
state's, which reads the weight once all the same, and the two products are added in float32.

So all of `generate()` works unchanged, with one forward pass per token, and the head is computed
only where logits are. `docs/decisions/` says why either addition leaves the output embedding in its
place.

Shape legend: B sequences, S positions of the pass, T positions with logits, K layers, H hidden.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.head.model import AlignmentHead


class AlignedLM:
    """A base with a head attached while the context is open.

    The hooks stay for as long as it is open, whatever alpha is: a compiled model does not notice
    hooks that come or go, but does notice whether they steer.

    Attributes:
        base: The base model.
        head: The head.
        layers: The layers of the base it reads.
        base_logits: Logits of the latest pass before the head's part, [B, T, vocab], while
            `keep_base_logits` is set.
        keep_base_logits: Whether to keep them; for as long as `steering` is open. For a head that
            acts on the state the product with the vocabulary then has twice the rows, as it always
            has in 16 bits.
    """

    def __init__(
        self,
        base: BaseModel,
        head: AlignmentHead,
        layers: tuple[int, ...],
        alpha: float | Sequence[float] = 0.0,
    ) -> None:
        """Prepare; hooks are registered on entering the context.

        Args:
            base: The base model.
            head: A head whose vocabulary is the base's.
            layers: The layers of this base it reads.
            alpha: Strength, as `set_alpha` takes it.
        """
        assert head.config.vocab_size == base.vocab_size
        assert head.config.num_layers == len(layers)
        self.base = base
        self.head = head
        self.keep_base_logits = False
        self.base_logits: Tensor | None = None
        self.layers = layers
        self._depth = base.num_hidden_layers
        self._taps = base.hidden_state_hooks(layers)
        self._handles: list[RemovableHandle] = []
        self._logits_to_keep: int | Tensor = 0
        self._doubled = False
        self._apart: int | None = None
        self.set_alpha(alpha)

    def __enter__(self) -> Self:
        assert not self._handles, "an aligned model cannot be joined twice at once"
        self._forget_compiled()
        self._taps.__enter__()
        model = self.base.model
        if self.head.config.acts_on_state:
            embedding = model.get_output_embeddings()
            self._handles = [
                model.register_forward_pre_hook(self._begin, with_kwargs=True),
                embedding.register_forward_pre_hook(self._add_to_state),
                embedding.register_forward_hook(self._add_products),
                model.register_forward_hook(self._end),
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

    def set_alpha(self, alpha: float | Sequence[float] | Tensor) -> None:
        """Set alpha for the following passes.

        Args:
            alpha: One for all; or one per request, [R], where B is R or, with beams or several
                responses per request, a multiple of it; or one per request and position, [R, T].
                Where all are 0 the head is not computed, and the base's logits are untouched.

        Raises:
            UsageError: An alpha is not a finite number.
        """
        values = torch.as_tensor(alpha, dtype=torch.float32)
        if not values.numel() or not values.isfinite().all():
            raise UsageError(f"alpha: got {alpha}, expected finite numbers")
        self._taps.paused = self._off = not bool(values.any())
        by_token_and_entry = values.reshape(*values.shape, *[1] * (3 - values.dim()))
        self._alpha = by_token_and_entry.to(self.head.device)

    @contextmanager
    def steering(self, alpha: float | Sequence[float] | Tensor) -> Iterator[None]:
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
        _require_named(output)
        added = self._added(kwargs.get("logits_to_keep", 0), output.logits.shape[1])
        if added is None:
            return output
        # In float32: a small alpha must not be rounded away against a large logit.
        logits = output.logits.float() + added.to(output.logits.device)
        if output.get("loss") is not None:
            output.loss = _aligned_loss(model, (args, kwargs), output.loss, output.logits, logits)
        output.logits = logits
        return output

    def _begin(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.keep_base_logits and kwargs.get("labels") is not None:
            raise UsageError("labels: got some, expected none while the base's logits are kept")
        self._logits_to_keep = kwargs.get("logits_to_keep", 0)
        self._doubled, self._apart = False, None

    def _add_to_state(self, embedding: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Put alpha f on the state, or under it where the sum would lose what f has."""
        state: Tensor = args[0]
        added = None if self._off else self._added(self._logits_to_keep, state.shape[1])
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

    def _end(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        self._taps.states.clear()
        if not self.keep_base_logits:
            return output
        _require_named(output)
        self.base_logits = output.logits
        if self._doubled:
            output.logits, self.base_logits = output.logits.chunk(2)
        return output

    def _added(self, kept: int | Tensor, positions: int) -> Tensor | None:
        """Return alpha times what the head adds, float32 [B, T, size], and forget the states.

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
        device = self.head.device
        states_BTKH = torch.stack(
            [_state(states, layer)[:, places].to(device) for layer in self.layers], dim=-2
        )
        vector = self.vector(states_BTKH)
        if len(vector) % len(self._alpha):
            raise UsageError(
                f"alpha: got {len(self._alpha)} strengths, but {len(vector)} rows are decoded; "
                f"give one for all, or one for each request"
            )
        return self._alpha.repeat_interleave(len(vector) // len(self._alpha), dim=0) * vector

    def vector(self, states: Tensor) -> Tensor:
        """Return what the head adds at alpha 1, float32 [..., vocab] or [..., hidden].

        Args:
            states: [..., K, hidden].
        """
        with torch.no_grad():
            vector: Tensor = self.head(states).float()
        return vector

    def _forget_compiled(self) -> None:
        """Drop the base's compiled forward pass, which holds earlier hooks."""
        if hasattr(self.base.model, "_compiled_call"):
            del self.base.model._compiled_call
            torch.compiler.reset()


def _require_named(output: Any) -> None:
    """Refuse an output of a pass that is a plain tuple."""
    if isinstance(output, tuple):
        raise UsageError(
            "return_dict: got False, expected True, as a steered model returns its logits by "
            "name; leave it out, or read `output.to_tuple()`"
        )


def _state(states: Mapping[int, Tensor], layer: int) -> Tensor:
    """Return a layer's input in a pass, [B, S, hidden]."""
    if layer not in states:
        raise UsageError(
            f"a pass of the base ran without its layer {layer}, whose state the head reads; run "
            f"all layers, or steer with alpha 0"
        )
    return states[layer]


def _aligned_loss(
    model: Any,
    given: tuple[Sequence[Any], Mapping[str, Any]],
    base_loss: Tensor,
    base_logits: Tensor,
    logits: Tensor,
) -> Tensor:
    """Return what the model's own loss would have been with other logits.

    Args:
        model: The transformers model.
        given: Positional and named arguments of its pass, `labels` among them.
        base_loss: Its loss.
        base_logits: What that was computed from, [B, T, vocab].
        logits: The other logits, likewise.
    """
    passed = inspect.signature(model.forward).bind(*given[0], **given[1])
    passed.apply_defaults()
    # What a pass has no name for is the loss function's, such as `num_items_in_batch`.
    extra: dict[str, Any] = next(
        (
            passed.arguments[name]
            for name, parameter in passed.signature.parameters.items()
            if parameter.kind is inspect.Parameter.VAR_KEYWORD
        ),
        {},
    )
    mine, before = (
        model.loss_function(
            logits=each, labels=passed.arguments["labels"], vocab_size=each.shape[-1], **extra
        )
        for each in (logits, base_logits)
    )
    # What else is in the loss, such as that which balances experts, is not a function of the
    # logits.
    loss: Tensor = mine + (base_loss - before)
    return loss
