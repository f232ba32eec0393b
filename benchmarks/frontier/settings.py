"""Sizes of the experiment, and where what it writes goes."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.frontier.prompts import Part
from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.options import check_options, option


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What decides every figure, beside method, setting, strength and seed.

    Attributes:
        base: Name of the base's file.
        training_prompts: Prompts whose answers become training pairs.
        tuning_prompts: Prompts that settings are chosen on, and that `best` is chosen by.
        held_out_prompts: Prompts that are reported.
        kl_prompts: The first so many of these have their answers' KL measured too.
        ranking_prompts: The first so many have their pairs ranked.
        answers: Answers to each prompt that pairs are made of, two to a pair.
        new_tokens: Most tokens of an answer.
        scale: Of rewards in the Bradley-Terry draw.
        expansion_size: E of heads.
        epochs: Passes over the pairs of heads and learned vectors.
        lora_epochs: Passes over the pairs of adapters.
        of_n: Answers to each prompt that the best is taken of.
        of_n_prompts: The first so many held-out prompts get them.
    """

    base: str
    training_prompts: int = option(
        540, whole=True, at_least=1, help="prompts whose answers become training pairs"
    )
    tuning_prompts: int = option(
        64, whole=True, at_least=1, help="prompts that settings are chosen on"
    )
    held_out_prompts: int = option(200, whole=True, at_least=1, help="prompts that are reported")
    kl_prompts: int = option(
        200, whole=True, at_least=1, help="the first so many of these have their KL measured"
    )
    ranking_prompts: int = option(
        100, whole=True, at_least=1, help="the first so many have pairs that are ranked"
    )
    answers: int = option(
        8, whole=True, at_least=2, help="answers to each prompt that pairs are made of"
    )
    new_tokens: int = option(40, whole=True, at_least=1, help="most tokens of an answer")
    scale: float = option(5.0, number=True, at_least=0, help="of rewards in the Bradley-Terry draw")
    expansion_size: int = option(512, whole=True, at_least=1, help="E of heads")
    epochs: int = option(3, whole=True, at_least=1, help="passes of heads and vectors")
    lora_epochs: int = option(1, whole=True, at_least=1, help="passes of adapters")
    of_n: int = option(
        20, whole=True, at_least=2, help="answers to each prompt that the best is taken of"
    )
    of_n_prompts: int = option(
        200, whole=True, at_least=1, help="the first so many held-out prompts get them"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.answers % 2:
            raise UsageError(f"answers: got {self.answers}, expected an even number")
        for name in ("kl_prompts", "ranking_prompts", "of_n_prompts"):
            if getattr(self, name) > self.held_out_prompts:
                raise UsageError(
                    f"{name}: got {getattr(self, name)}, expected at most the "
                    f"{self.held_out_prompts} held-out prompts"
                )

    def prompts(self, part: Part) -> int:
        """How many prompts of a part are used."""
        return {
            "training": self.training_prompts,
            "tuning": self.tuning_prompts,
            "held-out": self.held_out_prompts,
        }[part]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where pairs, caches and models are kept.

    Attributes:
        work: The folder of it all.
    """

    work: Path

    def claim(self, sizes: Sizes) -> None:
        """Make the folder, for these sizes alone.

        Raises:
            UsageError: It holds what other sizes made.
        """
        wanted = dataclasses.asdict(sizes)
        file = self.work / "sizes.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if found != wanted:
                differing = sorted(name for name in wanted if found.get(name) != wanted[name])
                raise UsageError(
                    f"{self.work}: was made with other sizes ({', '.join(differing)}); name "
                    f"another --work folder, or delete this one"
                )
            return
        self.work.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")

    def pairs(self, part: Part) -> Path:
        """File of the pairs of a part."""
        return self.work / f"pairs-{part}.jsonl"

    def cache(self, part: Part) -> Path:
        """Cache of the pairs of a part."""
        return self.work / f"{part}.cache"

    def model(self, name: str, setting: float | None, seed: int) -> Path:
        """Folder of a trained model."""
        told = "" if setting is None else f"-{setting:g}"
        return self.work / "models" / f"{name}{told}-seed{seed}"
