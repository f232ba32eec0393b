"""Direct Preference Optimization of LoRA adapters, by TRL's own trainer.

Source: Rafailov et al. 2023, "Direct Preference Optimization". The trainer is given tokens rather
than texts, so that it sees what a cache holds, and the reference's log-probabilities, which do not
depend on the seed. On CPUs TRL computes logits at every position of a sequence; here it does so at
those of answers only, as it does on GPUs: fewer products, the same values.

Settings: rank 16, alpha 32 and adapters on all linear layers as PEFT's and TRL's LoRA guides
have them, beta 0.1 (TRL's default and the paper's), linear decay after a tenth of warm-up.
"""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final
from unittest import mock

import torch
from torch import Tensor

from benchmarks.baselines.lora import (
    LoraSettings,
    Trained,
    lora_config,
    narrow_inputs,
    save_adapter,
    trainable_parameters,
)
from benchmarks.baselines.split import Split
from mav.pipeline.base.model import BaseModel
from mav.pipeline.runtime.compute_dtype import native_dtype
from mav.pipeline.runtime.progress import progress_bar

DPO: Final = LoraSettings(
    rank=16,
    alpha=32,
    dropout=0.0,
    targets="all-linear",
    beta=0.1,
    learning_rate=2e-4,
    schedule="linear",
    warmup=0.1,
    weight_decay=0.0,
)


def train_dpo(
    base: BaseModel,
    split: Split,
    reference: tuple[Tensor, Tensor],
    settings: LoraSettings,
    seed: int,
    folder: Path,
) -> Trained:
    """Train adapters and write them to a folder.

    Args:
        base: The base; its model is wrapped, and of no further use.
        split: The pairs.
        reference: log pi_base of chosen and rejected answers of the training pairs.
        settings: What to train and how.
        seed: Seed of adapters and order.
        folder: Where adapters go.
    """
    import datasets

    trl: Any = importlib.import_module("trl")
    rows = []
    for pair, chosen, rejected in zip(split.training, *map(Tensor.tolist, reference), strict=True):
        parts = [part.tolist() for part in split.pairs.parts(pair)]
        row = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), parts, strict=True))
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        rows.append(row | {"length": len(parts[0]) + max(len(parts[1]), len(parts[2]))})
    steps = -(-len(rows) // settings.batch_pairs) * settings.epochs
    config = trl.DPOConfig(
        output_dir=str(folder),
        seed=seed,
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=int(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_pairs,
        gradient_accumulation_steps=settings.batch_pairs // settings.micro_pairs,
        train_sampling_strategy="group_by_length",
        pad_to_multiple_of=settings.multiple,
        max_length=None,  # the pairs are cut already
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=native_dtype(torch.device("cpu")) == torch.bfloat16,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10,
    )
    with _answers_only(), progress_bar(len(rows) * settings.epochs, "DPO", "pair") as bar:
        trainer = _trainer_class()(
            model=base.model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=base.tokenizer,
            peft_config=lora_config(settings),
            callbacks=[_progress(bar, settings.batch_pairs)],
        )
        started, before = perf_counter(), process_time()
        with narrow_inputs(trainer.model):
            trainer.train()
        seconds, cpu_seconds = perf_counter() - started, process_time() - before
    save_adapter(trainer.model, folder)
    return Trained(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        parameters=trainable_parameters(trainer.model),
        steps=steps,
    )


def _trainer_class() -> Any:
    trl: Any = importlib.import_module("trl")

    class TokenTrainer(trl.DPOTrainer):  # type: ignore[misc]
        """TRL's trainer for pairs that are tokenized, and whose reference is known."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return TokenTrainer


def _progress(bar: Any, pairs: int) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            bar.update(min(pairs, bar.total - bar.n))

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                accuracy = float(logs.get("rewards/accuracies", "nan"))
                bar.set_postfix(loss=f"{float(logs['loss']):.4f}", acc=f"{accuracy:.2f}")

    return Progress()


@contextmanager
def _answers_only() -> Iterator[None]:
    """Have TRL compute logits of answers only, and say less."""
    logging.getLogger("trl").setLevel(logging.ERROR)
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        yield
