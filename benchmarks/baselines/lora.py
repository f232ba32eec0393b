"""Low-rank adapters on the base, by PEFT: what DPO and the autoregressive reward model train."""

import copy
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mav.pipeline.base.model import BaseModel


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters and the run that trains them.

    Attributes:
        rank: Rank of every adapter.
        alpha: Their scale is alpha / rank.
        dropout: Dropout on their input.
        targets: Names of the linear layers that get one, or `all-linear`, which leaves the output
            embedding out.
        beta: Inverse temperature of the loss.
        learning_rate: Peak rate.
        schedule: `linear` or `cosine` decay to zero.
        warmup: Share of the steps that warm up.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Gradients are clipped to this norm.
        batch_pairs: Pairs in a step.
        micro_pairs: Pairs run at once.
        epochs: Passes over the training pairs.
        multiple: Sequences are padded to a multiple of this.
    """

    rank: int
    alpha: int
    dropout: float
    targets: str | tuple[str, ...]
    beta: float
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    max_grad_norm: float = 1.0
    batch_pairs: int = 16
    micro_pairs: int = 4
    epochs: int = 1
    multiple: int = 32


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run came to.

    Attributes:
        seconds: Wall time of its steps.
        cpu_seconds: Processor time of its steps, which a busy machine does not lengthen.
        parameters: Trainable parameters.
        steps: Optimizer steps.
    """

    seconds: float
    cpu_seconds: float
    parameters: int
    steps: int


def lora_config(settings: LoraSettings) -> Any:
    """Return PEFT's configuration of the adapters."""
    peft: Any = importlib.import_module("peft")
    targets = settings.targets
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def trainable_parameters(model: Any) -> int:
    """Parameters that take gradients."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapters alone."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


def merged(base: BaseModel, folder: Path, dtype: torch.dtype) -> BaseModel:
    """Return a copy of a base with adapters added into its weights.

    They are added in float32, so that rounding happens once.
    """
    peft: Any = importlib.import_module("peft")
    model = copy.deepcopy(base.model).float()
    tuned = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return BaseModel(model=tuned.to(dtype), tokenizer=base.tokenizer)


def in_float32(base: BaseModel) -> BaseModel:
    """Return a copy of a base that computes in float32."""
    return BaseModel(model=copy.deepcopy(base.model).float(), tokenizer=base.tokenizer)


@contextmanager
def narrow_inputs(model: Any) -> Iterator[None]:
    """Leave inputs of adapters in bfloat16: autocast narrows the float32 adapters instead."""
    helpers: Any = importlib.import_module("peft.helpers")
    with helpers.disable_input_dtype_casting(model):
        yield
