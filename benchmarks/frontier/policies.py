"""Policies: what each method makes of a base, read token by token or over whole answers.

A policy reads texts with one model or several side by side. All have the same two uses, sampling
with a KV cache and a teacher-forced pass, so that methods differ in nothing else.

Shape legend: B sequences, S positions of a pass, T positions with logits, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mav.pipeline.base.model import BaseModel
from mav.pipeline.preferences.prompt_format import PromptFormat


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Models whose weighted log-probabilities are what decodes.

    Attributes:
        models: transformers models with their weights; one alone has its own logits.
        form: Form of prompts.
        system: A system prompt, or None for what the chat template says.
        active: Opens the context in which hooks change the models.
    """

    models: Sequence[tuple[Any, float]]
    form: PromptFormat
    system: str | None = None
    active: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext

    def tokens(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, up to where the answer begins."""
        if self.system is None:
            return self.form.tokens(self.form.render(prompt))
        turns = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": prompt},
        ]
        return self.form.tokens(self.form.render(turns))

    def reader(self, *, keeps_cache: bool) -> "Reader":
        """Return what reads one batch of texts, a piece after the other if it keeps a cache."""
        return Reader(self.models, keeps_cache=keeps_cache)


class Reader:
    """Reads texts and returns the policy's logits, up to a constant at each position."""

    def __init__(self, models: Sequence[tuple[Any, float]], *, keeps_cache: bool) -> None:
        self._parts = [
            (model, weight, DynamicCache() if keeps_cache else None) for model, weight in models
        ]

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """Return float32 logits [B, T, V].

        Args:
            ids: int64 [B, S], tokens that were not read yet.
            mask: int64 [B, all read so far], 0 where padding is.
            positions: int64 [B, S].
            keep: int64 [T], places among S that logits are wanted at.
        """
        total: Tensor | None = None
        for model, weight, cache in self._parts:
            # An index rather than a slice: a slice is no whole tensor, and the product with the
            # vocabulary would be made once for each sequence, with a copy of the embedding.
            logits: Tensor = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep,
            ).logits.float()
            if len(self._parts) == 1:
                return logits
            term = weight * logits.log_softmax(-1)
            total = term if total is None else total + term
        assert total is not None
        return total


def plain(base: BaseModel, form: PromptFormat, system: str | None = None) -> Policy:
    """The base, or a tuned model in its place; with a system prompt or without."""
    return Policy(models=[(base.model, 1.0)], form=form, system=system)


@contextlib.contextmanager
def adding(base: BaseModel, layer: int, vector: Tensor) -> Iterator[None]:
    """Add a vector to what a decoder layer is given, at every position, while this is open.

    Args:
        base: The base.
        layer: The layer, from 0; what is added to is `hidden_states[layer]`.
        vector: [hidden].
    """

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        moved = states + vector.to(states.dtype)
        if args:
            return (moved, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": moved}

    layers: Any = base.decoder.layers
    handle = layers[layer].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def steered(base: BaseModel, form: PromptFormat, layer: int, vector: Tensor) -> Policy:
    """The base with a vector added at a layer."""
    return Policy(models=[(base.model, 1.0)], form=form, active=lambda: adding(base, layer, vector))


def set_adapter_scale(model: nn.Module, strength: float) -> None:
    """Multiply what LoRA adapters add by a strength; 1 is as they were trained."""
    for module in model.modules():
        for name in getattr(module, "lora_A", ()):
            module.set_scale(name, strength)  # type: ignore[operator]


def padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Return tokens and mask [B, longest], int64; the padding is token 0."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.int64)
        mask[number, place] = 1
    return ids, mask
