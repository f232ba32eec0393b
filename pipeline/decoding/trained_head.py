"""A head with the record of what it was trained on: loaded, or new."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from mav.cache_schema.errors import MAVError, UsageError
from mav.cache_schema.manifest import BaseModelRecord, StatesRecord
from mav.pipeline.base.find_base import find_base
from mav.pipeline.base.layer_selection import select_layers
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import BaseSource, tensors_digest
from mav.pipeline.head.config import default_pooled_size, head_config
from mav.pipeline.head.model import AlignmentHead, quantize_head
from mav.pipeline.head.pretrained import load_head, recommended_alpha
from mav.pipeline.head.recommendation import Recommendation
from mav.pipeline.preferences.transcripts import TEMPLATE
from mav.pipeline.runtime.argument_names import tells_of_wrong_arguments
from mav.pipeline.runtime.choices import HeadKind

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A loaded head with the record of the base and states it was trained on.

    Attributes:
        name: Of the head, for messages.
        head: The head.
        base: The base it was trained on.
        states: The states it reads.
        template: The prompt template it was trained with.
        template_date: Date this template was given, or None.
        digest: SHA-256 over its weights.
        folder: Its folder, or None if it was made in memory.
        borrowed: Whether the weights are those of someone's own head, which must stay as they are.
        recommended: The strength to start from, if training found one.
    """

    name: str
    head: AlignmentHead
    base: BaseModelRecord
    states: StatesRecord
    template: str
    template_date: str | None
    digest: str
    folder: Path | None
    borrowed: bool = False
    recommended: Recommendation | None = None

    def source(self, revision: str | None, gguf_file: str | None) -> BaseSource:
        """Find the base it was trained on.

        Raises:
            UsageError: That base was never in files.
            BaseModelError: It is not found.
        """
        return find_base(
            self.base, self.name, near=self.folder, revision=revision, gguf_file=gguf_file
        )


def load_trained(
    head: str, dtype: torch.dtype = torch.float32, *, int8: bool = False
) -> TrainedHead:
    """Load a head from a folder, a training output or the hub.

    Args:
        head: Where it is.
        dtype: Element type it is to compute in.
        int8: Keep its weights in a byte each; needs torchao.

    Raises:
        HeadError: There is none, or its files are not a head's.
        UsageError: What int8 needs is not installed.
    """
    stored = load_head(head, dtype=dtype)
    if int8:
        quantize_head(stored.head)
    manifest = stored.origin.manifest
    return TrainedHead(
        name=f"The head {head}",
        head=stored.head,
        base=manifest.base,
        states=manifest.states,
        template=manifest.text.prompt_template,
        template_date=manifest.text.template_date,
        digest=stored.digest,
        folder=stored.path,
        recommended=stored.origin.recommended,
    )


def given_head(head: AlignmentHead, *, int8: bool = False) -> TrainedHead:
    """Return a head that was given as an object, with the weights it has.

    Where it is on the base's device and of its type, the weights stay shared: what training it
    further changes, decoding follows.

    Args:
        head: The head, which is not changed.
        int8: Keep a copy of its weights in a byte each; needs torchao.

    Raises:
        UsageError: It does not say what it was trained from, or what int8 needs is not installed.
    """
    if head.origin is None:
        raise UsageError(
            "head: got an AlignmentHead that does not say which states it reads; expected one from "
            "`AlignmentHead.from_pretrained` or `AlignmentHead.for_cache`"
        )
    shared, manifest = head.sharing_weights(), head.origin.manifest
    digest = tensors_digest(head.state_dict())
    if int8:
        quantize_head(shared)
    return TrainedHead(
        name="The given head",
        head=shared,
        base=manifest.base,
        states=manifest.states,
        template=manifest.text.prompt_template,
        template_date=manifest.text.template_date,
        digest=digest,
        folder=None,
        borrowed=True,
        recommended=head.origin.recommended,
    )


@tells_of_wrong_arguments
def new_head(
    base: BaseModel,
    *,
    head_type: HeadKind = "mlp",
    layer_selection: str = "auto",
    num_layers: int = 3,
    pooled_size: int | None = None,
    expansion_size: int | None = None,
    rank: int | None = None,
) -> TrainedHead:
    """Return a new head for a base, which leaves it as it is until trained.

    Sizes that are not given follow base and kind; see `head_config`.

    Raises:
        UsageError: A size is given that this kind has not, or there is no such kind.
    """
    layers = select_layers(layer_selection, num_layers, base.num_hidden_layers)
    record = base.fingerprint()
    pooled_size = pooled_size or default_pooled_size(base.hidden_size)
    try:
        config = head_config(
            record,
            head_type,
            num_layers=len(layers),
            pooled_size=pooled_size,
            expansion_size=expansion_size,
            rank=rank,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    states = StatesRecord(
        layer_selection=layer_selection if layer_selection in ("auto", "uniform") else "explicit",
        layers=layers,
        pooled_size=pooled_size,
        stored_width=min(base.hidden_size, pooled_size),
        dtype="float32",
    )
    head = AlignmentHead(config).to(base.dtype).eval()
    return TrainedHead(
        name="The new head",
        head=head,
        base=record,
        states=states,
        template=TEMPLATE,
        template_date=None,
        digest=tensors_digest(head.state_dict()),
        folder=None,
    )


def starting_alpha(path_or_hub_id: str) -> float:
    """Return the strength to start from: the recommended one, or 1.

    What is wrong with the head is told when it is loaded.
    """
    try:
        found = recommended_alpha(path_or_hub_id)
    except MAVError:
        return 1.0
    if found is not None:
        _log.info(f"Starting from alpha {found:g}, with which the head is recommended")
    return 1.0 if found is None else found
