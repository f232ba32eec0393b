"""Continuous batching: requests join and leave the batch between decoding steps.

`generate()` takes a batch and returns it whole. A server cannot wait for that: here, new prompts
are prefilled in a pass of their own, join the batch, and leave it when their responses end. Every
sequence has its own strength, sampling, seed and limits.

Shape legend: B sequences, S positions of the longest one, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.generate import left_padded, positions_of, takes_positions
from mav.pipeline.decoding.logprobs import LogProbs, logprobs_of
from mav.pipeline.decoding.request import (
    PROMPT_LOGITS,
    ActiveSequence,
    Request,
    TokenOutput,
    prefill_groups,
)
from mav.pipeline.decoding.response_text import ResponseText
from mav.pipeline.decoding.sampling import SequenceSampler, choose_each

_GROWING_LAYERS: Final = (DynamicLayer, DynamicSlidingWindowLayer)


class ContinuousBatchDecoder:
    """Decodes sequences in one batch that they may join and leave; not thread-safe.

    Attributes:
        sequences: Those that are being decoded.
    """

    def __init__(self, joined: AttachedModel) -> None:
        """Begin with an empty batch.

        Args:
            joined: Base and head; nothing else may decode with them while this exists.

        Raises:
            BaseModelError: The base keeps something else of its past than keys and values.
        """
        layers = DynamicCache(config=joined.base.config).layers
        if not all(type(layer) in _GROWING_LAYERS for layer in layers):
            raise BaseModelError(
                f"{joined.base.config.model_type}: this architecture keeps a running state in "
                f"place of keys and values, which cannot be decoded in a batch that changes. "
                f"mav generate can use it."
            )
        self.sequences: list[ActiveSequence] = []
        self._joined = joined
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.int64, device=joined.base.device)
        self._takes_positions = takes_positions(joined.base.model)

    @torch.inference_mode()
    def add(self, requests: Sequence[Request]) -> list[TokenOutput]:
        """Prefill new requests; return the first token of each."""
        outputs: list[TokenOutput] = []
        for group in prefill_groups(requests, self._joined.base.vocab_size):
            sequences = [self._begin(request) for request in group]
            inputs = left_padded([r.prompt for r in group], self._joined.base.pad_token)
            ids, mask = (tensor.to(self._joined.base.device) for tensor in inputs.values())
            # Without the base's configuration, layers with a window keep all of the past too, so
            # that sequences of any lengths fit together; the mask still hides what is outside.
            cache = DynamicCache()
            read = self._read_prompts if group[0].prompt_logprobs else self._pass
            tokens = read(sequences, ids, mask, cache)
            self._append(sequences, mask, cache)
            outputs += tokens
        self._evict(output.sequence for output in outputs if output.finish)
        return outputs

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Return the next token of every sequence; finished ones are removed."""
        if not self.sequences:
            return []
        device = self._mask.device
        last = torch.tensor([[sequence.tokens[-1]] for sequence in self.sequences], device=device)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        outputs = self._pass(self.sequences, last, self._mask, self._cache)
        self._evict(output.sequence for output in outputs if output.finish)
        return outputs

    def cancel(self, sequence: ActiveSequence) -> None:
        """Evict a sequence whose response is no longer wanted."""
        self._evict([sequence])

    def _begin(self, request: Request) -> ActiveSequence:
        stops = (*(self._joined.form.stops if request.is_turn else ()), *request.decoding.stop)
        grammar = request.grammar
        constraint = None if grammar is None else grammar.begin(self._ends(request))
        device = self._joined.base.device
        return ActiveSequence(
            request=request,
            text=ResponseText(self._joined.base.tokenizer, stops, strip=request.is_turn),
            sampler=SequenceSampler(request.decoding, device, request.prompt, constraint),
            constraint=constraint,
        )

    def _ends(self, request: Request) -> frozenset[int]:
        return self._joined.end_tokens if request.is_turn else self._joined.base.end_tokens

    def _read_prompts(
        self, sequences: Sequence[ActiveSequence], ids: Tensor, mask: Tensor, cache: DynamicCache
    ) -> list[TokenOutput]:
        """Read prompts [B, S] and the log-probabilities of their tokens; return the first tokens.

        Logits are as many as positions then, so they are read piece by piece.
        """
        width = ids.shape[1]
        size = max(1, PROMPT_LOGITS // (len(sequences) * self._joined.base.vocab_size))
        for begin in range(0, width, size):
            end = min(begin + size, width)
            logits, base, steered = self._logits(
                sequences, ids[:, begin:end], mask[:, :end], cache, end - begin
            )
            assert base is not None
            for at, sequence in enumerate(sequences):
                top = sequence.request.top_logprobs
                assert top is not None
                # A position predicts the next one; padding predicts nothing.
                first = max(begin, width - len(sequence.request.prompt)) - begin
                tokens = ids[at, begin + first + 1 : end + 1].tolist()
                until = first + len(tokens)
                sequence.prompt_logprobs += logprobs_of(
                    tokens, logits[at, first:until], base[at, first:until], top
                )
        assert base is not None
        return self._choose(sequences, logits[:, -1:], base[:, -1:], steered)

    def _logits(
        self,
        sequences: Sequence[ActiveSequence],
        ids: Tensor,
        mask: Tensor,
        cache: DynamicCache,
        kept: int,
    ) -> tuple[Tensor, Tensor | None, list[bool]]:
        """Return float32 logits of the last positions, [B, kept, V], the base's, and what steered.

        That is of each sequence whether a head was added at the last position.
        """
        aligned = self._joined.aligned
        wants = any(sequence.request.top_logprobs is not None for sequence in sequences)
        positions = positions_of(mask, ids.shape[1])
        with aligned.steering(
            [sequence.request.alpha.at(len(sequence.tokens)) for sequence in sequences],
            [sequence.request.decoding.steer_above for sequence in sequences],
        ):
            aligned.keep_base_logits = wants
            output = self._joined.base.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=kept,
                return_dict=True,
                **({"position_ids": positions} if self._takes_positions else {}),
            )
            base = aligned.base_logits
            steered = aligned.steered_last(len(sequences))
        plain = None if base is None else base[:, -kept:].float()
        return output.logits[:, -kept:].float(), plain, steered

    def _pass(
        self, sequences: Sequence[ActiveSequence], ids: Tensor, mask: Tensor, cache: DynamicCache
    ) -> list[TokenOutput]:
        return self._choose(sequences, *self._logits(sequences, ids, mask, cache, 1))

    def _choose(
        self,
        sequences: Sequence[ActiveSequence],
        logits: Tensor,
        base: Tensor | None,
        steered: Sequence[bool],
    ) -> list[TokenOutput]:
        """Choose the next token of each sequence under logits [B, 1, V]."""
        logits_BV = logits[:, 0]
        chosen = choose_each([sequence.sampler for sequence in sequences], logits_BV)
        logprobs = _logprobs_of_each(
            [sequence.request for sequence in sequences],
            chosen,
            logits_BV,
            None if base is None else base[:, 0],
        )
        return [
            self._advance(sequence, token, probs, is_steered)
            for sequence, token, probs, is_steered in zip(
                sequences, chosen, logprobs, steered, strict=True
            )
        ]

    def _advance(
        self, sequence: ActiveSequence, token: int, logprobs: LogProbs | None, steered: bool
    ) -> TokenOutput:
        now, before = perf_counter(), sequence.latest
        sequence.latest = now
        sequence.tokens.append(token)
        text = sequence.text.push(token)
        finish: Literal["stop", "length"] | None = None
        constraint = sequence.constraint
        whole = constraint is not None and constraint.finished
        error = None if constraint is None else constraint.error
        if whole or error or token in self._ends(sequence.request) or sequence.text.stopped:
            finish = "stop"
        elif len(sequence.tokens) >= sequence.request.decoding.max_new_tokens:
            finish = "length"
        if finish:
            text += sequence.text.finish()
        return TokenOutput(
            sequence=sequence,
            token=token,
            text=text,
            offset=sequence.text.offset,
            finish=finish,
            logprobs=logprobs,
            steered=steered,
            seconds=None if before is None else now - before,
            error=error,
        )

    def _append(
        self, sequences: Sequence[ActiveSequence], mask: Tensor, cache: DynamicCache
    ) -> None:
        """Append prefilled sequences to the batch, aligned on the right."""
        if not self.sequences:
            self._cache, self._mask = cache, mask
        else:
            width = max(mask.shape[1], self._mask.shape[1])
            masks = (F.pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask))
            self._mask = torch.cat([*masks])
            for layer, other in zip(self._cache.layers, cache.layers, strict=True):
                layer.keys = _stacked(layer.keys, other.keys, width)
                layer.values = _stacked(layer.values, other.values, width)
        self.sequences += sequences

    def _evict(self, sequences: Iterable[ActiveSequence]) -> None:
        gone = {id(sequence) for sequence in sequences}
        kept = [at for at, sequence in enumerate(self.sequences) if id(sequence) not in gone]
        if len(kept) == len(self.sequences):
            return
        self.sequences = [self.sequences[at] for at in kept]
        if not kept:
            self._cache, self._mask = DynamicCache(), self._mask[:0, :0]
            return
        at = torch.tensor(kept, device=self._mask.device)
        self._mask = self._mask[at]
        # Columns that were the longest prompt's alone go with it.
        first = int(self._mask.any(0).int().argmax())
        self._mask = self._mask[:, first:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[at.to(layer.keys.device), :, first:]
            layer.values = layer.values[at.to(layer.values.device), :, first:]


def _stacked(above: Tensor, below: Tensor, width: int) -> Tensor:
    """Stack keys or values [B, heads, S, size], widened on the left."""
    return torch.cat([F.pad(x, (0, 0, width - x.shape[2], 0)) for x in (above, below)])


def _logprobs_of_each(
    requests: Sequence[Request],
    chosen: Sequence[int],
    logits_BV: Tensor,
    base_BV: Tensor | None,
) -> list[LogProbs | None]:
    """Return those of the token each sequence has chosen, where it wants them.

    Without the base's logits no sequence wants any.
    """
    if base_BV is None:
        return [None] * len(chosen)
    return [
        None
        if request.top_logprobs is None
        else logprobs_of(
            [token], logits[None], base[None], request.top_logprobs, with_kl=request.kl
        )[0]
        for request, token, logits, base in zip(requests, chosen, logits_BV, base_BV, strict=True)
    ]
