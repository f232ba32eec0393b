"""Does a second round of one's own pairs gain over the first: `python -m benchmarks.second_round`.

The steps are those of docs/rounds.md on the prompts and the gold reward of `benchmarks.frontier`
(VADER's sentiment, from -1 to 1). Three heads are trained alike, on pairs of the best and the worst
answer to each training prompt:

    first    n answers of the base
    doubled  2n answers of the base, so that more answers alone are not taken for a second round
    second   the n answers of `first`, and n of base and the head of `first` at --round-alpha

Each head then answers the held-out prompts at several alphas, once each, at temperature 1. A point
is the mean gold reward and the mean KL of an answer to the base in nats; rewards at equal KL are
read off between neighbouring points, with 95 % bootstrap intervals over prompts. What is finished
in --work is not done again.
"""

import mav.pipeline  # noqa: F401 (sets what torch reads from the environment)

# isort: split

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.frontier.curves import Point, interval, reward_with_interval
from benchmarks.frontier.prompts import Part, prompts_of
from benchmarks.frontier.rewards import Reward, vader
from benchmarks.synthetic import say
from mav.pipeline.base.source import resolve_base
from mav.pipeline.decoding.options import GenerationOptions, InferenceOptions
from mav.pipeline.demo.run import installed_base
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.rounds.options import PairOptions, SampleOptions
from mav.pipeline.rounds.pairs import make_pairs
from mav.pipeline.rounds.sample import sample
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train

HEADS: Final = ("first", "doubled", "second")
_KL: Final = (2.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What is made of a base in a folder, each thing once.

    Attributes:
        asked: The options of the command.
        reward: The gold reward.
    """

    asked: argparse.Namespace
    reward: Reward

    def prompts(self, part: Part) -> Path:
        """Return the file of a part's prompts."""
        count = self.asked.training_prompts if part == "training" else self.asked.held_out_prompts
        rows = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts_of(part, count)]
        return self._made(f"prompts-{part}.jsonl", lambda path: path.write_text("".join(rows)))

    def answers(
        self, name: str, part: Part, n: int, seed: int, head: str | None, alpha: float
    ) -> Path:
        """Return the file of n answers to each prompt of a part, at alpha of a head."""

        def make(path: Path) -> None:
            options = SampleOptions(
                prompts=str(self.prompts(part)),
                output=path,
                base_model=self.asked.base_model,
                n=n,
                batch_size=self.asked.batch_size,
                decoding=GenerationOptions(
                    max_new_tokens=self.asked.new_tokens, temperature=1.0, seed=seed
                ),
                head=str(self.head(head)) if head else None,
                alpha=alpha if head else None,
            )
            sample(options, InferenceOptions(prompt_form="chat", device="cpu"))

        return self._made(f"answers-{name}.jsonl", make)

    def samples(self, head: str) -> list[Path]:
        """Return the files of answers that a head's pairs are made of."""
        n, seed = self.asked.answers, 10 * self.asked.seed
        files = [self.answers("base", "training", n, seed + 1, None, 0.0)]
        if head == "doubled":
            files.append(self.answers("more", "training", n, seed + 2, None, 0.0))
        if head == "second":
            alpha = self.asked.round_alpha
            files.append(self.answers("steered", "training", n, seed + 3, "first", alpha))
        return files

    def pairs(self, head: str) -> Path:
        """Return the file of a head's pairs."""

        def make(path: Path) -> None:
            files = self.samples(head)
            rows = [row for file in files for row in rows_of(file)]
            scores = path.with_suffix(".scores.jsonl")
            lines = (
                json.dumps({**row, "score": self.reward(row["response"])}) + "\n" for row in rows
            )
            scores.write_text("".join(lines), encoding="utf-8")
            report = make_pairs(
                PairOptions(samples=tuple(map(str, files)), scores=scores, output=path)
            )
            say(f"{head}: {report.pairs} pairs, mean margin {report.margin:.2f}")

        return self._made(f"pairs-{head}.jsonl", make)

    def head(self, head: str) -> Path:
        """Return the folder of a trained head, its last weights."""

        def extracted(path: Path) -> None:
            extract(
                ExtractOptions(
                    base_model=self.asked.base_model,
                    data=DataSource(id=str(self.pairs(head))),
                    output=path,
                    prompt_form="chat",
                    max_length=256,
                    device="cpu",
                )
            )

        def trained(path: Path) -> None:
            train(
                TrainOptions(
                    cache=self._made(f"{head}.cache", extracted),
                    output_dir=path,
                    expansion_size=self.asked.expansion_size,
                    num_epochs=self.asked.epochs,
                    learning_rate=self.asked.learning_rate,
                    eval_fraction=0.1,
                    seed=self.asked.seed,
                    report_to="none",
                )
            )

        return self._made(head, trained) / "last"

    def curve(self, head: str) -> list[Point]:
        """Return a head's points, by alpha from 0 on."""
        points = []
        for alpha in (0.0, *self.asked.alphas):
            name = f"{head}-at-{alpha:g}" if alpha else "held-out"
            seed = 1000 + self.asked.seed
            path = self.answers(name, "held-out", 1, seed, head if alpha else None, alpha)
            rows = rows_of(path)
            points.append(
                Point(
                    strength=alpha,
                    reward=np.array([self.reward(row["response"]) for row in rows]),
                    kl=np.array([row["kl"] for row in rows]),
                )
            )
            means = points[-1].reward.mean(), points[-1].kl.mean()
            say(f"{head} at {alpha:g}: reward {means[0]:.3f}, KL {means[1]:.2f} nats")
        return points

    def _made(self, name: str, make: Callable[[Path], Any]) -> Path:
        """Return a file or folder, made now unless it was finished before."""
        path: Path = self.asked.work / name
        done = path.with_name(f"{name}.done")
        if not done.is_file():
            make(path)
            done.touch()
        return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measure(asked: argparse.Namespace, reward: Reward) -> dict[str, Any]:
    """Run what is missing; return all points, and rewards at equal KL."""
    asked.work.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(asked).items() if name != "work"}
    file = asked.work / "settings.json"
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{asked.work}: was made with other settings; name another --work")
    file.write_text(json.dumps(settings))
    rounds = Rounds(asked=asked, reward=reward)
    curves = {head: rounds.curve(head) for head in HEADS}
    return {
        "points": {
            head: [
                {
                    "alpha": point.strength,
                    "reward": float(point.reward.mean()),
                    "reward_interval": interval(point.reward),
                    "kl": float(point.kl.mean()),
                }
                for point in points
            ]
            for head, points in curves.items()
        },
        "reward_at_kl": {
            f"{kl:g}": {head: reward_with_interval(kl, points) for head, points in curves.items()}
            for kl in _KL
        },
        "settings": settings,
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder that all is kept in")
    parser.add_argument("--base-model", default=None, help="hub id, folder or .gguf file")
    parser.add_argument("--training-prompts", type=int, default=240)
    parser.add_argument("--held-out-prompts", type=int, default=200)
    parser.add_argument("--answers", type=int, default=4, help="n, to each training prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--round-alpha", type=float, default=1.0)
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--expansion-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    asked.base_model = resolve_base(asked.base_model or str(installed_base()), None, None).id
    return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object."""
    print(json.dumps(measure(parse(argv), vader()), indent=1))


if __name__ == "__main__":
    main()
