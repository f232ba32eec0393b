"""The gold reward, and preference pairs drawn from it."""

import importlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Reward = Callable[[str], float]
"""The reward of an answer's text."""


def vader() -> Reward:
    """Return VADER's compound score, from -1 to 1.

    Source: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
    of Social Media Text".

    Raises:
        SystemExit: Its package is not installed.
    """
    try:
        found: Any = importlib.import_module("vaderSentiment.vaderSentiment")
    except ImportError:
        raise SystemExit("The gold reward is not installed: pip install vaderSentiment") from None
    analyzer = found.SentimentIntensityAnalyzer()

    def reward(text: str) -> float:
        return float(analyzer.polarity_scores(text)["compound"])

    return reward


@dataclass(frozen=True, kw_only=True)
class DrawnPairs:
    """Pairs, and what became of the answers they were made of.

    Attributes:
        rows: Rows `{prompt, chosen, rejected}`.
        dropped: Couples of answers that made no pair, by reason.
        agreeing: Share of pairs of different rewards whose chosen answer has the higher one.
    """

    rows: list[dict[str, str]]
    dropped: Counter[str]
    agreeing: float


def draw_pairs(
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    reward: Reward,
    scale: float,
    seed: int,
) -> DrawnPairs:
    """Draw which of two answers is preferred, after Bradley and Terry 1952.

    The first answer to a prompt meets the second, the third the fourth, and so on; a is preferred
    to b with probability 1 / (1 + exp(-scale * (reward(a) - reward(b)))).

    Args:
        prompts: The prompts.
        answers: An even number of answers to each.
        reward: The gold reward.
        scale: Large is hardly ever wrong, 0 is a coin.
        seed: Seed of the draw.
    """
    draws = random.Random(seed)  # noqa: S311
    rows, dropped, right, unequal = [], Counter[str](), 0, 0
    for prompt, texts in zip(prompts, answers, strict=True):
        for a, b in zip(texts[::2], texts[1::2], strict=True):
            gap = reward(a) - reward(b)
            prefers_a = draws.random() < 1 / (1 + np.exp(-scale * gap))
            if not a.strip() or not b.strip():
                dropped["empty answer"] += 1
            elif a == b:
                dropped["identical answers"] += 1
            else:
                chosen, rejected = (a, b) if prefers_a else (b, a)
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
                unequal += gap != 0
                right += gap != 0 and prefers_a == (gap > 0)
    agreeing = right / unequal if unequal else float("nan")
    return DrawnPairs(rows=rows, dropped=dropped, agreeing=agreeing)


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
