"""Continuous batching: requests join and leave the batch between decoding steps.

`generate()` takes a batch and returns it whole. A server cannot wait for that: here, requests join
the rows that are being decoded, with a prompt's pass of their own, and leave when they end. Every
row has its own strength, sampling, seed and limits.

Shape legend: B rows, S positions of the longest row, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.generate import left_padded, positions_of, takes_positions
from mav.pipeline.decoding.request import PROMPT_LOGITS, Request, prefill_groups
from mav.pipeline.decoding.response_text import ResponseText
from mav.pipeline.decoding.sampling import RowSampler, choose_each
from mav.pipeline.decoding.token_logprobs import LogProbs, logprobs_of

_ROWS_OF_TOKENS: Final = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True, kw_only=True)
class TokenOutput:
    """The output of one step for one sequence.

    Attributes:
        row: The row.
        token: Id of the token.
        text: Text that is certain now; may be empty.
        offset: Where in the response's text the token begins.
        finish: Why the response ends here, or None.
        logprobs: Where they were asked for.
        seconds: Since the row's token before, or None for its first.
    """

    row: "Row"
    token: int
    text: str
    offset: int
    finish: Literal["stop", "length"] | None
    logprobs: LogProbs | None
    seconds: float | None


@dataclass(eq=False, kw_only=True)
class Row:
    """A sequence that is being decoded.

    Attributes:
        request: The request.
        tokens: Ids of the new tokens so far.
        prompt_logprobs: Of the prompt's tokens but the first, where they were asked for.
        latest: When the last of them came, by `perf_counter`, or None.
    """

    request: Request
    text: ResponseText
    sampler: RowSampler
    tokens: list[int] = field(default_factory=list)
    prompt_logprobs: list[LogProbs] = field(default_factory=list)
    latest: float | None = None


class ContinuousBatchDecoder:
    """Decodes sequences in one batch that they may join and leave; not thread-safe.

    Attributes:
        rows: The rows that are being decoded.
    """

    def __init__(self, joined: AttachedModel) -> None:
        """Begin without rows.

        Args:
            joined: Base and head; nothing else may decode with them meanwhile.

        Raises:
            BaseModelError: The base keeps of its past something else than keys and values.
        """
        layers = DynamicCache(config=joined.base.config).layers
        if not all(type(layer) in _ROWS_OF_TOKENS for layer in layers):
            raise BaseModelError(
                f"{joined.base.config.model_type}: this architecture keeps a running state in "
                f"place of keys and values, which cannot be decoded in a batch that changes. "
                f"mav generate can use it."
            )
        self.rows: list[Row] = []
        self._joined = joined
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.int64, device=joined.base.device)
        self._takes_positions = takes_positions(joined.base.model)

    @torch.inference_mode()
    def add(self, requests: Sequence[Request]) -> list[TokenOutput]:
        """Prefill new requests; return the first token of each."""
        found: list[TokenOutput] = []
        for group in prefill_groups(requests):
            rows = [self._new_row(request) for request in group]
            inputs = left_padded([r.prompt for r in group], self._joined.base.pad_token)
            ids, mask = (tensor.to(self._joined.base.device) for tensor in inputs.values())
            # Without the base's configuration, layers with a window keep all of the past too, so
            # that rows of any lengths can be put together; the mask still hides what is outside.
            cache = DynamicCache()
            read = self._read_prompts if group[0].prompt_logprobs else self._pass
            tokens = read(rows, ids, mask, cache)
            self._append(rows, mask, cache)
            found += tokens
        self._drop(token.row for token in found if token.finish)
        return found

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Return the next token of every sequence; finished ones are removed."""
        if not self.rows:
            return []
        device = self._mask.device
        last = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        found = self._pass(self.rows, last, self._mask, self._cache)
        self._drop(token.row for token in found if token.finish)
        return found

    def cancel(self, row: Row) -> None:
        """Evict a sequence whose response is no longer wanted."""
        self._drop([row])

    def _new_row(self, request: Request) -> Row:
        of_form = self._joined.form.stops if request.is_turn else ()
        stops = (*of_form, *request.decoding.stop)
        return Row(
            request=request,
            text=ResponseText(self._joined.base.tokenizer, stops, strip=request.is_turn),
            sampler=RowSampler(request.decoding, self._joined.base.device, request.prompt),
        )

    def _read_prompts(
        self, rows: Sequence[Row], ids: Tensor, mask: Tensor, cache: DynamicCache
    ) -> list[TokenOutput]:
        """Read prompts [B, S] and the log-probabilities of their tokens; return the first tokens.

        Logits are as many as positions then, so they are read piece by piece.
        """
        width = ids.shape[1]
        size = max(1, PROMPT_LOGITS // (len(rows) * self._joined.base.vocab_size))
        for begin in range(0, width, size):
            end = min(begin + size, width)
            logits, base = self._logits(rows, ids[:, begin:end], mask[:, :end], cache, end - begin)
            assert base is not None
            for at, row in enumerate(rows):
                top = row.request.top_logprobs
                assert top is not None
                # A position predicts the next one; what a row is padded with predicts nothing.
                first = max(begin, width - len(row.request.prompt)) - begin
                tokens = ids[at, begin + first + 1 : end + 1].tolist()
                until = first + len(tokens)
                row.prompt_logprobs += logprobs_of(
                    tokens, logits[at, first:until], base[at, first:until], top
                )
        return self._chosen(rows, logits[:, -1:], None if base is None else base[:, -1:])

    def _logits(
        self, rows: Sequence[Row], ids: Tensor, mask: Tensor, cache: DynamicCache, kept: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return float32 logits of the last positions, [B, kept, V], and the base's if wanted."""
        aligned = self._joined.aligned
        wants = any(row.request.top_logprobs is not None for row in rows)
        positions = positions_of(mask, ids.shape[1])
        with aligned.steering([row.request.alpha.at(len(row.tokens)) for row in rows]):
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
            base = _last(aligned.base_logits, kept) if wants else None
        return _last(output.logits, kept), base

    def _pass(
        self, rows: Sequence[Row], ids: Tensor, mask: Tensor, cache: DynamicCache
    ) -> list[TokenOutput]:
        return self._chosen(rows, *self._logits(rows, ids, mask, cache, 1))

    def _chosen(
        self, rows: Sequence[Row], logits: Tensor, base: Tensor | None
    ) -> list[TokenOutput]:
        """Choose the next token of each row under logits [B, 1, V]."""
        chosen = choose_each([row.sampler for row in rows], logits[:, 0])
        logprobs = _logprobs(rows, chosen, logits, base)
        return [
            self._advance(row, token, probs)
            for row, token, probs in zip(rows, chosen, logprobs, strict=True)
        ]

    def _advance(self, row: Row, token: int, logprobs: LogProbs | None) -> TokenOutput:
        now, before = perf_counter(), row.latest
        row.latest = now
        row.tokens.append(token)
        text = row.text.push(token)
        finish: Literal["stop", "length"] | None = None
        ends = self._joined.end_tokens if row.request.is_turn else self._joined.base.end_tokens
        if token in ends or row.text.stopped:
            finish = "stop"
        elif len(row.tokens) >= row.request.decoding.max_new_tokens:
            finish = "length"
        if finish:
            text += row.text.finish()
        return TokenOutput(
            row=row,
            token=token,
            text=text,
            offset=row.text.offset,
            finish=finish,
            logprobs=logprobs,
            seconds=None if before is None else now - before,
        )

    def _append(self, rows: Sequence[Row], mask: Tensor, cache: DynamicCache) -> None:
        """Append prefilled sequences to the batch, aligned on the right."""
        if not self.rows:
            self._cache, self._mask = cache, mask
        else:
            width = max(mask.shape[1], self._mask.shape[1])
            self._mask = torch.cat([_widened(self._mask, width), _widened(mask, width)])
            for layer, other in zip(self._cache.layers, cache.layers, strict=True):
                layer.keys = _joined_rows(layer.keys, other.keys, width)
                layer.values = _joined_rows(layer.values, other.values, width)
        self.rows += rows

    def _drop(self, rows: Iterable[Row]) -> None:
        gone = {id(row) for row in rows}
        kept = [at for at, row in enumerate(self.rows) if id(row) not in gone]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in kept]
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


def _last(logits: Any, kept: int) -> Tensor:
    last: Tensor = logits[:, -kept:].float()
    return last


def _widened(mask: Tensor, width: int) -> Tensor:
    return F.pad(mask, (width - mask.shape[1], 0))


def _joined_rows(above: Tensor, below: Tensor, width: int) -> Tensor:
    """Stack keys or values [B, heads, S, size], widened on the left."""
    return torch.cat([F.pad(x, (0, 0, width - x.shape[2], 0)) for x in (above, below)])


def _logprobs(
    rows: Sequence[Row], chosen: Sequence[int], logits: Tensor, base: Tensor | None
) -> list[LogProbs | None]:
    """Return the log-probabilities of new tokens under logits [B, 1, V], where wanted."""
    if base is None:
        return [None] * len(rows)
    return [
        None
        if row.request.top_logprobs is None
        else logprobs_of([token], logits[at], base[at], row.request.top_logprobs)[0]
        for at, (row, token) in enumerate(zip(rows, chosen, strict=True))
    ]
