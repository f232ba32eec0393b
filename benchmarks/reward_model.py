"""Trains a reward model on preference pairs, and says how often it ranks held-out ones right.

    python -m benchmarks.reward_model --pairs FILE --output FOLDER --json

TRL's `RewardTrainer` trains the base and a new linear layer of one logit, by
-log sigmoid(r(chosen) - r(rejected)). The pairs held out are those that `mav train` holds out, and
are ranked as `mav compare --reward-model FOLDER` will score answers. Needs the extra `bench`.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch

from benchmarks.synthetic import log_to_stderr, say
from mav.pipeline.base.gguf_copy import resolve_with_copy
from mav.pipeline.comparison.reward import RewardModel, answer_text, shortened, text_ids
from mav.pipeline.demo.run import installed_base
from mav.pipeline.evaluation.statistics import wilson
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.preferences.reader import PreferencePair, ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.compute_dtype import native_dtype
from mav.pipeline.runtime.library_logging import QuietLibraries

BATCH_PAIRS: Final = 16
MICRO_PAIRS: Final = 4


def read_split(
    dataset: str, fraction: float
) -> tuple[list[PreferencePair], list[PreferencePair], ReadCounts]:
    """Return the pairs to train on, those held out, and what became of the rows."""
    counts = ReadCounts()
    pairs = [*read_pairs(DataSource(id=dataset), counts)]
    ids = np.array([pair.prompt_id for pair in pairs], dtype=np.uint64)
    held_out = in_subset(ids, PairSubset(split="held-out", fraction=fraction)).tolist()
    training = [pair for pair, out in zip(pairs, held_out, strict=True) if not out]
    return training, [pair for pair, out in zip(pairs, held_out, strict=True) if out], counts


def train(pairs: Sequence[PreferencePair], folder: Path, asked: argparse.Namespace) -> float:
    """Train a reward model and write it with its tokenizer to a folder; return the seconds."""
    import datasets
    import transformers

    trl: Any = importlib.import_module("trl")
    source = resolve_with_copy(asked.base_model or str(installed_base()))
    transformers.set_seed(asked.seed)
    with QuietLibraries():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source.loaded_from)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            **source.loaded_from, num_labels=1, dtype=torch.float32
        )
    if asked.trained_layers is not None:
        freeze_all_but(model, asked.trained_layers)
    columns = {
        f"{name}_ids": [
            shortened(ids, asked.max_length, tokenizer)
            for ids in text_ids(
                tokenizer,
                [answer_text(tokenizer, pair.asked, getattr(pair, name)) for pair in pairs],
            )
        ]
        for name in ("chosen", "rejected")
    }
    lengths = [max(map(len, both)) for both in zip(*columns.values(), strict=True)]
    steps = -(-len(pairs) // BATCH_PAIRS) * asked.epochs
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl.RewardTrainer(
            model=model,
            args=trl.RewardConfig(
                output_dir=scratch,
                seed=asked.seed,
                learning_rate=asked.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=steps // 10,
                num_train_epochs=asked.epochs,
                per_device_train_batch_size=MICRO_PAIRS,
                gradient_accumulation_steps=BATCH_PAIRS // MICRO_PAIRS,
                train_sampling_strategy="group_by_length",
                pad_to_multiple_of=32,
                max_length=None,  # the texts are cut already
                gradient_checkpointing=False,
                bf16=native_dtype(torch.device("cpu")) == torch.bfloat16,
                use_cpu=True,
                remove_unused_columns=False,
                save_strategy="no",
                report_to="none",
                logging_steps=10,
            ),
            train_dataset=datasets.Dataset.from_dict(columns | {"length": lengths}),
            processing_class=tokenizer,
        )
        started = perf_counter()
        trainer.train()
        seconds = perf_counter() - started
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return seconds


def freeze_all_but(model: Any, layers: int) -> None:
    """Leave the last decoder layers, the final norm and the new linear layer to be trained."""
    decoder = model.get_decoder()
    decoder.requires_grad_(False)
    for part in (*decoder.layers[-layers:], decoder.norm):
        part.requires_grad_(True)


def accuracy(model: RewardModel, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Return how many pairs a reward model ranks right, with the 95 % interval; ties are half."""
    prompts = [pair.asked for pair in pairs]
    chosen, rejected = (
        np.array(model.score(prompts, [getattr(pair, name) for pair in pairs]))
        for name in ("chosen", "rejected")
    )
    margin = chosen - rejected
    right = float((margin > 0).sum() + 0.5 * (margin == 0).sum())
    return {
        "held_out_pairs": len(pairs),
        "accuracy": right / len(pairs),
        "accuracy_interval": wilson(right, len(pairs)),
        "margin": float(margin.mean()),
        "longer_chosen": float(np.mean([len(pair.chosen) > len(pair.rejected) for pair in pairs])),
        "cut_texts": model.cut,
    }


def main() -> None:
    """Train, measure, and print one JSON object or a few lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the reward model")
    parser.add_argument("--base-model", default=None, help="by default the installed SmolLM2-135M")
    parser.add_argument("--pairs", required=True, help="file of preference pairs")
    parser.add_argument("--limit", type=int, default=None, help="train on this many, at random")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of prompt and answer")
    parser.add_argument("--eval-fraction", type=float, default=0.29)
    parser.add_argument(
        "--trained-layers", type=int, default=None, help="train only this many of the last layers"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.output.exists():
        raise SystemExit(f"--output {asked.output}: exists already; remove it, or name another")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    log_to_stderr()
    training, held_out, counts = read_split(asked.pairs, asked.eval_fraction)
    if asked.limit is not None and asked.limit < len(training):
        training = random.Random(asked.seed).sample(training, asked.limit)  # noqa: S311
    say(f"{counts.rows:,} rows, {len(training):,} pairs to train on, {len(held_out):,} held out")
    with contextlib.redirect_stdout(sys.stderr):  # libraries print where only the answer belongs
        seconds = train(training, asked.output, asked)
        model = RewardModel.load(str(asked.output), max_length=asked.max_length)
        found = accuracy(model, held_out)
    found |= {
        "training_pairs": len(training),
        "training_seconds": seconds,
        "dropped_rows": dict(counts.dropped),
        "settings": {name: str(value) for name, value in vars(asked).items() if name != "json"},
    }
    low, high = found["accuracy_interval"]
    print(
        json.dumps(found, indent=1)
        if asked.json
        else f"{found['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}] of "
        f"{found['held_out_pairs']:,} held-out pairs ranked right, after {len(training):,} pairs "
        f"in {seconds:.0f} s; the longer answer is the chosen one in {found['longer_chosen']:.1%}"
    )


if __name__ == "__main__":
    main()
