"""What the tests of refused input share: a world in which all is well, and commands in it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from tests.support.models.tiny import VOCAB, make_cache, save_base, tiny_base, write_rows
from tests.support.running.commands import done

USAGE, DATA = 2, 1

Args = list[object]


@dataclass(frozen=True, kw_only=True)
class World:
    """A base, data, caches and a head that are all well; read only."""

    base: Path
    data: Path
    cache: Path
    other_vocabulary: Path
    head: Path
    model: BaseModel

    @classmethod
    def made(cls, folder: Path) -> "World":
        """Make them in a folder, the head by the command."""
        base = save_base(tiny_base(), folder / "base")
        model = load_base(str(base), dtype=torch.float32, device="cpu")
        world = cls(
            base=base,
            data=write_rows(folder / "pairs.jsonl", 12),
            cache=make_cache(folder / "own", model, pairs=12),
            other_vocabulary=make_cache(folder / "other", tiny_base(vocab_size=VOCAB + 8), pairs=4),
            head=folder / "run",
            model=model,
        )
        done(*train_args(world.cache, world.head))
        return world


def train_args(cache: Path, output: Path) -> Args:
    sizes = ["--expansion-size", 16, "--batch-size", 2, "--grad-accum", 1, "--no-bf16"]
    return ["train", "--cache", cache, "--output-dir", output, *sizes, "--eval-fraction", 0.3]


def evaluate_args(head: Path, cache: Path) -> Args:
    return ["evaluate", "--head", head, "--cache", cache, "--device", "cpu"]


def generate_args(head: Path) -> Args:
    options = ["--device", "cpu", "--dtype", "float32", "--max-new-tokens", 2]
    return ["generate", "--head", head, *options]


def copy_of_base(world: World, folder: Path) -> Path:
    """A copy of the base, to damage."""
    return shutil.copytree(world.base, folder / "base")
