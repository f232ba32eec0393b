"""Short training runs of small heads, and what they leave."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mav.pipeline.training.checkpoint import Checkpoint, newest_checkpoint
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.report import TrainReport
from mav.pipeline.training.train import train
from mav.pipeline.training.trainer import Trainer
from tests.support.running.logs import logged_messages
from tests.support.steering.heads import FRACTION, size_option

METRICS = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies",
    "squared_norm",
}
OF_EVALUATIONS = METRICS | {"kl", "scaled_loss", "margin_per_root_kl"}


def run(cache: Path, folder: Path, **changes: Any) -> TrainReport:
    """Train a small head on the CPU: 32 pairs, 8 steps per epoch."""
    return train(options_of(cache, folder, **changes))


def options_of(cache: Path, folder: Path, **changes: Any) -> TrainOptions:
    """What `run` trains."""
    settings: dict[str, Any] = {
        "eval_fraction": FRACTION,
        **size_option(changes.pop("head_type", "mlp"), 16),
        "learning_rate": 1e-2,
        "batch_size": 2,
        "bf16": False,
        "grad_accum": 2,
        "workers": 0,
        **changes,
    }
    return TrainOptions(cache=cache, output_dir=folder, **settings)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, without what a clock measured."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if "per_second" not in name}
        for line in lines
    ]


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a head."""
    found: dict[str, Tensor] = safetensors.torch.load_file(folder / "model.safetensors")
    return found


def checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint of a run, of which no damage is logged."""
    with logged_messages() as logged:
        found = newest_checkpoint(folder)
    assert found is not None and logged == []
    return found


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare named tensors bit by bit."""
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.equal(got[name], expected[name]), name


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """Interrupt training when this many steps are taken, as Ctrl-C does."""
    original = Trainer.step

    def step(trainer: Trainer, number: int, *rest: Any) -> float:
        if number == steps:
            raise KeyboardInterrupt
        return original(trainer, number, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", step)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder, by path."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
