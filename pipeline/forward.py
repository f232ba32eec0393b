"""Running the base over a batch, however it is packed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from torch import Tensor

from cache_schema.errors import BaseModelError
from pipeline.base_model import BaseModel
from pipeline.memory import is_out_of_memory
from pipeline.packed_attention import packed_attention
from pipeline.packing import ForwardBatch

REFUSALS: Final = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""What models raise that cannot be run as they are asked to; NotImplementedError is one of them."""


@contextmanager
def told_if_it_fails(base: BaseModel) -> Iterator[None]:
    """Make one plain error of what a base's own code raises; errors of memory stay as they are.

    Raises:
        BaseModelError: It cannot be run as it is configured.
    """
    try:
        yield
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        raise BaseModelError(
            f"{base.id}: transformers cannot run this base as it is configured "
            f"({type(error).__name__}: {said})"
        ) from error


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
