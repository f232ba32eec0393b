"""A base model whose logits heads steer, inside every forward pass.

Hooks take the states of the heads' layers as they pass, and add alpha * a to the logits the model
returns; a loss follows them. A head that acts on the state has alpha * f added to what the model's
own output embedding is given, so that scale, soft-cap and loss are the model's. A state of 16 bits
has too few digits for the sum; there the product takes alpha * f as rows of its own beside the
state's, which reads the weight once all the same, and the two products are added in float32.

Of several heads the sum is added: z + sum_i alpha_i a_i, and of those that act on the state
sum_i alpha_i f_i, so that they cost one product with the vocabulary together.

Where a request has a limit, heads are computed only at positions at which the base's entropy is
above it, if there are any in a pass. A head that acts on the state then takes a product of its own
with the vocabulary, of these positions, as the base's logits have to be known first.

So all of `generate()` works unchanged, with one forward pass per token, and heads are computed
only where logits are. `docs/decisions/` says why either addition leaves the output embedding in its
place.

Shape legend: B sequences, S positions of the pass, T positions with logits, K layers, H hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.output_forms import OutputForm
from mav.pipeline.decoding.steering.pass_output import require_named, with_added
from mav.pipeline.decoding.steering.pass_states import states_of_pass
from mav.pipeline.decoding.steering.uncertainty import entropy, plus_where
from mav.pipeline.decoding.steering.weighted_heads import Limits, ToEach, WeightedHeads
from mav.pipeline.head.model import AlignmentHead


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
        alpha: ToEach = 0.0,
    ) -> None:
        """Prepare; hooks are registered on entering the context.

        Args:
            base: The base model.
            head: A head whose vocabulary is the base's, or several.
            layers: The layers of this base that it reads, and all of several.
            alpha: Strength, as `set_alpha` takes it.
        """
        self.base = base
        several = not isinstance(head, AlignmentHead)
        self.heads = (head,) if isinstance(head, AlignmentHead) else tuple(head)
        assert all(one.config.vocab_size == base.vocab_size for one in self.heads)
        assert all(one.config.num_layers == len(layers) for one in self.heads)
        self._weighted = WeightedHeads(self.heads, several=several)
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
        self._where: Tensor | None = None
        self._form: OutputForm | None = None
        self.set_alpha(alpha)

    def __enter__(self) -> Self:
        assert not self._handles, "an aligned model cannot be joined twice at once"
        self._forget_compiled()
        self._taps.__enter__()
        model = self.base.model
        if self._weighted.on_state:
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
        return self._weighted.device

    def set_alpha(self, alpha: ToEach) -> None:
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
        self._weighted.set_alpha(alpha)
        self._taps.paused = self._weighted.off

    def steered_last(self, rows: int) -> list[bool]:
        """Return of each row of the latest pass whether a head was added at its last position."""
        return self._weighted.steered_last(rows)

    @contextmanager
    def steering(self, alpha: ToEach, above: Limits = None) -> Iterator[None]:
        """Steer while the context is open; outside it the base is unchanged.

        Args:
            alpha: As `set_alpha` takes it.
            above: Entropy of the base's own distribution in nats, one for all or one per request;
                tokens at which it is not above that are left to the base. None for no limit.
        """
        try:
            self._weighted.set_limits(above)
            if self._weighted.limited and self._weighted.on_state and self._form is None:
                self._form = self.base.output_form()
            self.set_alpha(alpha)
            yield
        finally:
            self.set_alpha(0.0)
            self._weighted.set_limits(None)
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
        if self._weighted.off or self._is_draft():
            self._taps.states.clear()
            return output
        require_named(output)
        where = self._weighted.where(entropy(output.logits)) if self._weighted.limited else None
        kept, positions = kwargs.get("logits_to_keep", 0), output.logits.shape[1]
        inputs = self._inputs(kept, positions, where)
        added = self._weighted.total(self._weighted.used_on_logits, inputs, where)
        return output if added is None else with_added(model, (args, kwargs), output, added, where)

    def _begin(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.keep_base_logits and kwargs.get("labels") is not None:
            raise UsageError("labels: got some, expected none while the base's logits are kept")
        self._logits_to_keep = kwargs.get("logits_to_keep", 0)
        self._doubled, self._apart, self._to_logits, self._where = False, None, None, None

    def _add_to_state(self, embedding: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Put alpha f on the state, or under it where the sum would lose what f has."""
        if self._weighted.off or self._is_draft() or self._weighted.limited:
            return None
        state: Tensor = args[0]
        inputs = self._inputs(self._logits_to_keep, state.shape[1], None)
        self._to_logits = self._weighted.total(self._weighted.used_on_logits, inputs, None)
        added = self._weighted.total(self._weighted.used_on_state, inputs, None)
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

    def _add_products(
        self, embedding: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        """Add the products of state and alpha f in float32, where they were kept apart."""
        if self._weighted.limited and not (self._weighted.off or self._is_draft()):
            return self._add_where(embedding, args[0], output)
        if self._apart is None:
            return None
        rows, products = self._apart, output.float()
        base, aligned = products[:rows], products[:rows] + products[rows : 2 * rows]
        if len(products) > 2 * rows:
            aligned -= products[2 * rows :]
        return torch.cat([aligned, base]) if self._doubled else aligned

    def _add_where(self, embedding: nn.Module, state: Tensor, product: Tensor) -> Tensor | None:
        """Add the product of alpha f where the base is uncertain enough."""
        assert self._form is not None
        self._where = where = self._weighted.where(entropy(self._form.logits(product)))
        inputs = self._inputs(self._logits_to_keep, product.shape[1], where)
        self._to_logits = self._weighted.total(self._weighted.used_on_logits, inputs, where)
        added = self._weighted.total(self._weighted.used_on_state, inputs, where)
        if added is None:
            return None
        rows = added.to(state.device, state.dtype)
        biased = getattr(embedding, "bias", None) is not None
        if biased:
            rows = torch.cat([rows, torch.zeros_like(rows[:1])])
        # By its forward, which no hook of this class is around.
        products = embedding.forward(rows[None])[0].float()
        aligned = plus_where(product, products[:-1] - products[-1:] if biased else products, where)
        self._doubled = self.keep_base_logits
        return torch.cat([aligned, product.float()]) if self._doubled else aligned

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
        if added is None:
            return output
        return with_added(model, (args, kwargs), output, added, self._where)

    def _is_draft(self) -> bool:
        # By the first layers alone (`assistant_early_exit`): a pass of all, which is steered, takes
        # what it proposes or leaves it.
        return self.base.num_hidden_layers < self._depth

    def _inputs(
        self, kept: int | Tensor, positions: int, where: Tensor | None
    ) -> dict[int, Tensor] | None:
        """Return what each head in use reads, and forget the states of the pass.

        As `WeightedHeads.total` takes it; the arguments are those of `states_of_pass`.
        """
        states = {**self._taps.states}
        self._taps.states.clear()
        if where is not None and not where.any():
            return None
        return self._weighted.inputs(
            states_of_pass(states, self.layers, kept, positions, where, self.device)
        )

    def _forget_compiled(self) -> None:
        """Drop the base's compiled forward pass, which holds earlier hooks."""
        if hasattr(self.base.model, "_compiled_call"):
            del self.base.model._compiled_call
            torch.compiler.reset()
