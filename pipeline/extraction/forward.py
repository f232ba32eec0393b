"""Runs the base over a packed batch."""

from contextlib import nullcontext
from typing import Any

from torch import Tensor

from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.packed_attention import packed_attention
from mav.pipeline.extraction.packing import ForwardBatch


def run_decoder(base: BaseModel, batch: ForwardBatch) -> None:
    """Run all decoder layers and the last norm, and nothing over the vocabulary.

    Raises:
        NotImplementedError: The base cannot attend as the batch is packed.
    """
    _run(base, base.decoder, batch)


def run_whole(base: BaseModel, batch: ForwardBatch) -> Tensor:
    """Run the whole model; return its logits [B, S, vocab].

    Raises:
        NotImplementedError: The base cannot attend as the batch is packed.
    """
    logits: Tensor = _run(base, base.model, batch).logits
    return logits


def _run(base: BaseModel, model: Any, batch: ForwardBatch) -> Any:
    attending = (
        nullcontext() if batch.layout is None else packed_attention(base.decoder, batch.layout)
    )
    with attending:
        return model(**batch.inputs, use_cache=False, return_dict=True)
