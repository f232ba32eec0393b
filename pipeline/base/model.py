"""The frozen base model, with what extraction and decoding need from it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from accelerate.utils import align_module_device
from torch import nn

from mav.cache_schema.errors import BaseModelError, DataError
from mav.cache_schema.manifest import BaseModelRecord
from mav.pipeline.base.generation_defaults import tokens_named
from mav.pipeline.base.given.adapters_in import adapter_state
from mav.pipeline.base.given.borrowed import lent, set_as_a_base
from mav.pipeline.base.hidden_states import HiddenStateHooks
from mav.pipeline.base.output_forms import OutputForm, closest, is_linear, possible_forms
from mav.pipeline.base.quantization import (
    quantization_in,
    quantization_of,
)
from mav.pipeline.base.source import (
    BaseSource,
    config_digest,
    tensors_digest,
    tokenizer_digest,
)
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.runtime.choices import Quantize

IN_MEMORY: Final = "memory:"
"""Begins the id of a base that was not loaded from files."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A loaded causal language model, frozen and in eval mode.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer.
        source: Its files, or None for a model built in memory.
        quantize: How it was quantized when it was loaded.
        borrowed: Whether the model is someone else's, and so is frozen by no one and put in eval
            mode only while it is in use.
        generation_config: The model's own, even while it is emptied.
    """

    model: Any
    tokenizer: Any
    source: BaseSource | None = None
    quantize: Quantize | None = None
    borrowed: bool = False
    generation_config: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise BaseModelError(
                f"{self.id}: its configuration says is_encoder_decoder, and only decoders can be "
                f"bases; if it is one, set that to false in its config.json"
            )
        if not self.borrowed:
            set_as_a_base(self.model)
            self.model.requires_grad_(False)
        object.__setattr__(self, "generation_config", self.model.generation_config)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have the model as a base needs it while the context is open; opened by whatever runs it.

        Of a borrowed model, mode and configuration are put back afterwards, after errors too.
        """
        with lent(self.model) if self.borrowed else nullcontext():
            yield

    @property
    def id(self) -> str:
        """Its name: hub id, folder or file; or the class of a model built in memory."""
        return self.source.id if self.source else f"{IN_MEMORY}{type(self.model).__name__}"

    @property
    def config(self) -> Any:
        """The configuration of the text decoder."""
        return self.model.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """Device of its inputs."""
        device = torch.device(self.model.device)
        # Offloaded weights are on `meta` until accelerate's hook loads them.
        hook = getattr(self.model, "_hf_hook", None)
        if device.type == "meta" and hook is not None:
            return torch.device(hook.execution_device)
        return device

    @property
    def devices(self) -> list[torch.device]:
        """All devices it computes on; several if it is spread."""
        placed = {parameter.device for parameter in self.model.parameters()}
        return sorted({self.device, *(each for each in placed if each.type != "meta")}, key=str)

    @property
    def logits_device(self) -> torch.device:
        """Where its logits are computed; may differ from `device` if it is spread."""
        device: torch.device = self.model.get_output_embeddings().weight.device
        return self.device if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """Element type it computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def decoder(self) -> nn.Module:
        """The text decoder without its output embedding."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers, L."""
        return int(self.config.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """Rows of the output embedding."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def hidden_size(self) -> int:
        """Width of the state the output embedding is given."""
        return int(self.model.get_output_embeddings().weight.shape[1])

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens it reads, or None if its configuration gives no limit."""
        named = getattr(self.config, "max_position_embeddings", None)
        return named if isinstance(named, int) and named > 0 else None

    def excess(self, prompt_tokens: int, new_tokens: int) -> str | None:
        """Return an error message for more tokens than it reads at once, or None."""
        most = self.context_length
        if most is None or prompt_tokens + new_tokens <= most:
            return None
        return (
            f"got {prompt_tokens} tokens and {new_tokens} new ones, expected at most {most} "
            f"together, which the base can read"
        )

    def require_within(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        """Refuse prompts whose responses would exceed the context length.

        Args:
            prompts: Token ids of each prompt.
            new_tokens: Most tokens of a response.

        Raises:
            DataError: The first such prompt.
        """
        for prompt in prompts:
            wrong = self.excess(len(prompt), new_tokens)
            if wrong is not None:
                raise DataError(f"The prompt: {wrong}; shorten it, or lower `max_new_tokens`")

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a response: the tokenizer's, and those the base names."""
        return frozenset([int(self.tokenizer.eos_token_id), *tokens_named(self.generation_config)])

    @property
    def pad_token(self) -> int:
        """Token that pads a batch; its id does not matter."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def hidden_state_hooks(self, indices: tuple[int, ...]) -> HiddenStateHooks:
        """Return hooks that capture the hidden states of these layers; not yet registered."""
        return HiddenStateHooks(self.decoder, self._layers(), indices)

    def unembedding(self) -> Unembedding:
        """Return the output embedding with the model's logit scale and soft-cap."""
        head = self.model.get_output_embeddings()
        weight, bias = head.weight.detach(), getattr(head, "bias", None)
        if weight.device.type == "meta" and hasattr(head, "_hf_hook"):
            # Offloaded to disk by accelerate; loaded once and kept.
            with align_module_device(head, execution_device=self.device):
                weight = head.weight.detach().clone()
                bias = None if bias is None else head.bias.detach().clone()
        candidates = [
            Unembedding(
                weight=weight,
                bias=None if bias is None else bias.detach(),
                scale=form.scale,
                softcap=form.softcap,
            )
            for form in possible_forms(self.config)
        ]
        return candidates[0] if len(candidates) == 1 else closest(candidates, *self._some_logits())

    def output_form(self) -> OutputForm:
        """Return what the model does to products with its output embedding."""
        unembedding = self.unembedding()
        return OutputForm(scale=unembedding.scale, softcap=unembedding.softcap)

    @torch.inference_mode()
    def _some_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return final states [S, hidden] of a short text, and the model's own logits of them."""
        ids = self.tokenizer("How do I say no politely?", return_tensors="pt")["input_ids"]
        last = self.num_hidden_layers
        with self.in_use(), self.hidden_state_hooks((last,)) as hooks:
            output = self.model(input_ids=ids.to(self.device), use_cache=False, return_dict=True)
            return hooks.states[last][0], output.logits[0]

    def require_linear_output(self) -> None:
        """Refuse a base whose logits are not linear in its last state, inside scale and soft-cap.

        One short text goes through it.

        Raises:
            BaseModelError: The input of its output embedding is not the last state, or its logits
                are not the products, scaled and capped.
        """
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        handle = self.model.get_output_embeddings().register_forward_hook(
            lambda _, args, product: seen.append((args[0][0], product[0]))
        )
        try:
            state, logits = self._some_logits()
        finally:
            handle.remove()
        if len(seen) != 1 or not is_linear(self.config, state, *seen[0], logits):
            raise BaseModelError(
                f"{self.config.model_type}: this model's logits are not its last state times its "
                f"output embedding, scaled and capped, so a head of kind unembedding cannot steer "
                f"it exactly. Use a head of kind mlp."
            )

    def fingerprint(self) -> BaseModelRecord:
        """Return its record for a manifest, with digests of weights, config and tokenizer.

        All weights are read for their digest: those of files once, those of a model built in memory
        at every call, since they may have changed.
        """
        if self.source is not None:
            return self._fingerprint_of_files
        with self.in_use():
            return self._fingerprint()

    @cached_property
    def _fingerprint_of_files(self) -> BaseModelRecord:
        return self._fingerprint()

    def _fingerprint(self) -> BaseModelRecord:
        source = self.source
        return BaseModelRecord(
            id=source.name if source else self.id,
            revision=source.revision if source else None,
            gguf_file=source.gguf_file if source else None,
            quantization=(
                quantization_of(source, self.quantize)
                if source
                else quantization_in(self.model.config)
            ),
            architecture=type(self.model).__name__,
            weights_digest=(source.weights_digest() if source else _digest_in_memory(self.model)),
            config_digest=(
                source.config_digest() if source else config_digest(self.config.to_dict())
            ),
            tokenizer_digest=tokenizer_digest(self.tokenizer.get_vocab()),
            num_hidden_layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            eos_token_id=int(self.tokenizer.eos_token_id),
            parameters=int(self.model.num_parameters()),
        )

    def _layers(self) -> list[nn.Module]:
        wanted = self.num_hidden_layers
        for module in self.decoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == wanted:
                return list(module)
        raise BaseModelError(
            f"{type(self.model).__name__}: no list of {wanted} decoder layers found in it, so its "
            f"hidden states cannot be taken. Please report this architecture."
        )


def _digest_in_memory(model: nn.Module) -> str:
    weights, adapters = tensors_digest(model.state_dict()), adapter_state(model)
    return hashlib.sha256(f"{weights} {adapters}".encode()).hexdigest() if adapters else weights
