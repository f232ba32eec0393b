"""Responses in columns, one per alpha, as wide as the terminal."""

import shutil
import textwrap
from collections.abc import Sequence


def side_by_side(prompt: str, alphas: Sequence[float], answers: Sequence[str]) -> str:
    """Lay out the responses to a prompt in columns, one per alpha."""
    gap, columns = 3, len(answers)
    total = max(80, min(160, shutil.get_terminal_size((120, 24)).columns))
    width = (total - gap * (columns - 1)) // columns
    texts = [
        [f"alpha {alpha:g}", "-" * width, *_wrapped(answer, width)]
        for alpha, answer in zip(alphas, answers, strict=True)
    ]
    height = max(map(len, texts))
    lines = [
        (" " * gap)
        .join(f"{text[row] if row < len(text) else '':<{width}}" for text in texts)
        .rstrip()
        for row in range(height)
    ]
    return "\n".join([f"Human: {prompt}", *lines])


def _wrapped(text: str, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, width) or [""]]
