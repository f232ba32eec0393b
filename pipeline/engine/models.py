"""vLLM's model classes with heads in them, made on demand by their names.

A class hands out the states that heads read, beside the last one, from every pass: the layers'
states in the way vLLM has for draft models (EAGLE-3), which compiles and is captured in graphs as
the rest. The states of the rows whose logits are computed are kept until the logits processor has
used them.
"""

from functools import cache
from typing import Any, Final

import torch
import vllm
from torch import Tensor
from vllm.model_executor.models.interfaces import supports_eagle3, supports_multimodal
from vllm.model_executor.models.registry import ModelRegistry

from mav.cache_schema.errors import UsageError
from mav.pipeline.engine.engine_checks import check_engine, check_model, check_output_embedding
from mav.pipeline.engine.names import architecture_of
from mav.pipeline.engine.shared_state import SharedState
from mav.pipeline.engine.slots import SteeredRows
from mav.pipeline.engine.steering_config import SteeringConfig
from mav.pipeline.engine.vocabulary_heads import VocabularyHeads

_BACKENDS: Final = ("TransformersForCausalLM", "TransformersMoEForCausalLM")
_OF_EXPERTS: Final = ("Moe", "MoE", "Mixtral", "Experts")
_HEADS: Final = "mav_heads"


def __getattr__(name: str) -> type:
    architecture = architecture_of(name, vllm.__version__.partition("+")[0])
    if architecture is None:
        raise AttributeError(name)
    return steered_class(architecture)


@cache
def steered_class(architecture: str) -> type:
    """Return the class of an architecture with heads in it.

    Raises:
        UsageError: No class of vLLM's for it hands out the states of layers.
    """
    own = ModelRegistry.models[architecture].load_model_cls()
    if supports_multimodal(own):
        raise UsageError(
            f"{architecture} reads images, and heads in vLLM were tested with text models alone; "
            f"use `mav serve`"
        )
    if supports_eagle3(own):
        return _with_heads(own)
    # Its own class does not hand out states; that of transformers' modelling code does.
    backend = _BACKENDS[any(word in architecture for word in _OF_EXPERTS)]
    general = ModelRegistry.models[backend].load_model_cls()
    if not supports_eagle3(general):
        raise UsageError(
            f"{architecture}: neither vLLM's class for it nor {backend} hands out the states of "
            f"layers; use `mav serve`"
        )
    return _with_heads(general)


def _with_heads(own: Any) -> type:
    class Steered(own):  # type: ignore[misc]
        """A model of vLLM's with heads in it."""

        def __init__(self, *, vllm_config: Any, prefix: str = "", **more: Any) -> None:
            config = SteeringConfig.of(vllm_config.additional_config)
            check_engine(vllm_config, config)
            super().__init__(vllm_config=vllm_config, prefix=prefix, **more)
            model_config = vllm_config.model_config
            heads = VocabularyHeads(config, model_config.dtype, _HEADS)
            check_model(model_config, config, heads.sizes, in_transformers=_is_general(own))
            self._hidden_size = model_config.get_hidden_size()
            last = model_config.get_total_num_hidden_layers()
            others = tuple(layer for layer in heads.reads if layer < last)
            if others:
                self.set_aux_hidden_state_layers(others)
            # Where a layer's state is in what a pass returns: the last one comes first.
            order = [last, *others]
            self._places = [order.index(layer) for layer in heads.reads]
            self._width = len(order)
            if heads.on_state:
                _vocabulary_layer(self)
                layer = getattr(self, "lm_head", None)
                check_output_embedding(model_config.model, getattr(layer, "quant_method", None))
            setattr(self, _HEADS, heads)
            self._rows: Tensor | None = None
            self._state_part: tuple[SteeredRows, Tensor | None] | None = None
            self._in_use = False
            self._shared = SharedState.of(vllm_config)
            self._shared.model = self

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Return the last state and beside it those that heads read, [T, H * states]."""
            output = super().forward(*args, **kwargs)
            if not isinstance(output, tuple):
                return output
            hidden, others = output
            return torch.cat([hidden, *others], dim=-1)

        def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            """Return the base's logits, and keep the states of their rows."""
            rows = hidden_states.reshape(-1, self._width, self._hidden_size)
            last = rows[:, 0].contiguous()
            self._rows, self._state_part = rows, None
            if not self._in_use:
                self._first_use(last)
            planned = self._shared.planned_rows(len(rows))
            heads = getattr(self, _HEADS)
            if planned is not None and planned.rows and heads.on_state:
                alphas = torch.tensor(planned.alphas)
                states = self._states(list(planned.rows))
                shift = heads.total(heads.on_state, states, alphas)
                if shift is not None:
                    logits, added = self._both(last, list(planned.rows), shift)
                    self._state_part = planned, added
                    return logits
            return super().compute_logits(last, *args, **kwargs)

        def added_logits(self, steered: SteeredRows) -> Tensor | None:
            """Return what the heads add to rows of the latest logits, float32 [S, V].

            None on ranks that do not sample.
            """
            assert self._rows is not None
            heads, rows = getattr(self, _HEADS), list(steered.rows)
            alphas = torch.tensor(steered.alphas)
            states = self._states(rows)
            added = heads.total(heads.on_logits, states, alphas)
            if self._state_part is not None and self._state_part[0] == steered:
                part = self._state_part[1]
            else:
                shift = heads.total(heads.on_state, states, alphas)
                part = None if shift is None else self._shifted(rows, shift)
            return part if added is None else added if part is None else added + part

        def load_weights(self, weights: Any) -> set[str]:
            """Load the base's weights and the heads'; return the names of all."""
            # The loaders of vLLM would look for the heads in the base's files.
            heads = self._modules.pop(_HEADS)
            try:
                loaded = super().load_weights(weights)
            finally:
                self._modules[_HEADS] = heads
            return {*(loaded or ()), *(f"{_HEADS}.{name}" for name in heads.load())}

        def _states(self, rows: list[int]) -> Tensor:
            """Return what heads read at rows, [S, K, H]."""
            assert self._rows is not None
            return self._rows[rows][:, self._places]

        def _products(self, states: Tensor) -> Any:
            """Return products with the output embedding, before soft-cap and scale, [N, V]."""
            layer = _vocabulary_layer(self)
            kept = layer.soft_cap, layer.scale
            layer.soft_cap, layer.scale = None, 1.0
            try:
                return super().compute_logits(states)
            finally:
                layer.soft_cap, layer.scale = kept

        def _finished(self, products: Tensor) -> Tensor:
            """Return logits of products as vLLM makes them."""
            layer = _vocabulary_layer(self)
            if layer.soft_cap is not None:
                products = torch.tanh(products / layer.soft_cap) * layer.soft_cap
            return products if layer.scale == 1.0 else products * layer.scale

        def _both(self, last: Tensor, rows: list[int], shift: Tensor) -> tuple[Any, Tensor | None]:
            """Return the base's logits of all rows, and what a shift adds to some, float32.

            One product with the vocabulary has both, a state's and its shift's as rows of their
            own: the sum of the two in 16 bits would lose most of what the shift has.
            """
            zero = torch.zeros_like(last[:1])
            products = self._products(torch.cat([last, shift.to(last.dtype), zero]))
            if products is None:
                return None, None
            count = len(last)
            base = products[:count]
            # What a bias adds is in every row.
            moved = products[count:-1].float() - products[-1:].float()
            return self._finished(base), self._moved(base[rows].float(), moved)

        def _shifted(self, rows: list[int], shift: Tensor) -> Tensor | None:
            """Return what a shift of the last state adds to rows of the latest logits, float32."""
            assert self._rows is not None
            if _vocabulary_layer(self).soft_cap is None:
                shifts = shift.to(self._rows.dtype)
                products = self._products(torch.cat([shifts, torch.zeros_like(shifts[:1])]))
                if products is None:
                    return None
                return self._finished(products[:-1].float() - products[-1:].float())
            last = self._rows[rows][:, 0].contiguous()
            return self._both(last, list(range(len(rows))), shift)[1]

        def _moved(self, base: Tensor, moved: Tensor) -> Tensor:
            if _vocabulary_layer(self).soft_cap is None:
                return self._finished(moved)
            return self._finished(base + moved) - self._finished(base)

        def _first_use(self, last: Tensor) -> None:
            """Run the heads once, so that vLLM counts their memory, and check the base's logits.

            Raises:
                UsageError: A head acts on the state, and the base's logits are not its products
                    with the output embedding, scaled and capped.
            """
            self._in_use = True
            heads = getattr(self, _HEADS)
            every = SteeredRows(
                rows=tuple(range(len(last))), alphas=((1.0,) * len(heads.parts),) * len(last)
            )
            self.added_logits(every)
            if not heads.on_state:
                return
            ramp = torch.linspace(-1, 1, last.shape[-1], device=last.device)
            some = torch.stack([ramp, ramp.square() - 0.5]).to(last.dtype)
            logits, products = super().compute_logits(some), self._products(some)
            zero = self._products(torch.zeros_like(some))
            twice = self._products(2 * some)
            if logits is None:
                return
            own_way = self._finished(products).float()
            whole = torch.allclose(logits.float(), own_way, rtol=1e-3, atol=1e-2)
            size = float((products - zero).float().abs().max())
            linear = twice.float() - zero.float() - 2 * (products.float() - zero.float())
            if not whole or float(linear.abs().max()) > 0.05 * size:
                raise UsageError(
                    f"{own.__name__}: its logits are not the last state times the output "
                    f"embedding, scaled and capped, so a head of kind unembedding cannot steer it; "
                    f"use one of kind mlp"
                )

    Steered.__name__ = Steered.__qualname__ = f"Steered{own.__name__}"
    return Steered


def _is_general(own: Any) -> bool:
    return own.__name__ in _BACKENDS


def _vocabulary_layer(model: Any) -> Any:
    """Return vLLM's layer that makes logits of products.

    Raises:
        UsageError: The class has none.
    """
    layer = getattr(model, "logits_processor", None)
    if layer is None:
        raise UsageError(
            f"{type(model).__name__}: makes its logits in a way of its own, so a head of kind "
            f"unembedding cannot steer it; use one of kind mlp"
        )
    return layer
