"""What an extraction costs, by arithmetic: `python -m benchmarks.cost`, `--write` for the page.

For bases of LLaMA's shapes, three layers pooled to at most 4,096, factored logits, bfloat16. A pair
is so many tokens through the base, its prompt once and both answers, of which so many are response
tokens; `mav extract --dry-run` counts them for any data set.

    FLOP        2 for each token and weight of the decoder layers, and for attention 4 for each
                token, layer, unit of width and token it sees, half of a text on average
    bytes       of the arrays, a response token; and one copy of the output embedding
    hours       FLOP over a part of a GPU's peak: large products reach three quarters of it
                (PRODUCT), and the forward passes of an extraction 0.6 of what those do (FORWARD)
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parents[1] / "docs" / "cost.md"
BEGIN: Final = "<!-- Written by `python -m benchmarks.cost --write`; do not edit. -->"
END: Final = "<!-- End of what is written. -->"

PRODUCT: Final = 0.75
FORWARD: Final = 0.6
PEAK_TFLOPS: Final = {"L40S": 362.0, "A100": 312.0, "H100": 989.0}
"""Of dense bfloat16 products, as NVIDIA states them (SXM modules)."""
_POOLED: Final = 4096
_LAYERS_TAKEN: Final = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a base.

    Attributes:
        name: What it is called.
        decoder_weights: Weights of its decoder layers.
        layers: Number of decoder layers.
        hidden: Their width.
        vocab: Size of the vocabulary.
    """

    name: str
    decoder_weights: float
    layers: int
    hidden: int
    vocab: int = 32000


LLAMAS: Final = (
    Shape(name="7B", decoder_weights=6.476e9, layers=32, hidden=4096),
    Shape(name="13B", decoder_weights=12.688e9, layers=40, hidden=5120),
    Shape(name="70B", decoder_weights=68.452e9, layers=80, hidden=8192),
)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How much data there is.

    Attributes:
        count: Number of pairs.
        tokens: Tokens of a pair through the base.
        response_tokens: Of these, those that are stored.
    """

    count: int
    tokens: float
    response_tokens: float


def flops(shape: Shape, pairs: Pairs) -> float:
    """Return the floating-point operations of the forward passes over all pairs."""
    seen = pairs.tokens / 2
    a_token = 2 * shape.decoder_weights + 4 * shape.layers * shape.hidden * seen
    return pairs.count * pairs.tokens * a_token


def bytes_per_token(shape: Shape) -> int:
    """Return the bytes of a response token's states and label."""
    states = _LAYERS_TAKEN * min(shape.hidden, _POOLED)
    final = 0 if shape.hidden <= _POOLED else shape.hidden
    return 2 * (states + final) + 4


def cost(shape: Shape, pairs: Pairs) -> dict[str, Any]:
    """Return what an extraction takes."""
    operations = flops(shape, pairs)
    stored = pairs.count * pairs.response_tokens * bytes_per_token(shape)
    hours = {
        gpu: operations / (peak * 1e12 * PRODUCT * FORWARD) / 3600
        for gpu, peak in PEAK_TFLOPS.items()
    }
    return {
        "base": shape.name,
        "weight_bytes": 2 * (shape.decoder_weights + 2 * shape.vocab * shape.hidden),
        "flop": operations,
        "bytes_per_token": bytes_per_token(shape),
        "cache_bytes": stored + 2 * shape.vocab * shape.hidden,
        "gpu_hours": hours,
        "bytes_per_second": {gpu: stored / time / 3600 for gpu, time in hours.items()},
    }


def table(pairs: Pairs) -> str:
    """Return the table of the page."""
    lines = [
        "| base | weights | FLOP | bytes per token | cache | "
        + " | ".join(f"{gpu}: hours, MB/s" for gpu in PEAK_TFLOPS)
        + " |",
        "| --- | --- | --- | --- | --- | " + " | ".join("---" for _ in PEAK_TFLOPS) + " |",
    ]
    for shape in LLAMAS:
        found = cost(shape, pairs)
        times = " | ".join(
            f"{found['gpu_hours'][gpu]:.1f}, {found['bytes_per_second'][gpu] / 1e6:.0f}"
            for gpu in PEAK_TFLOPS
        )
        lines.append(
            f"| {shape.name} | {found['weight_bytes'] / 1e9:.1f} GB | {found['flop']:.1e} | "
            f"{found['bytes_per_token']:,} | {found['cache_bytes'] / 1e12:.2f} TB | {times} |"
        )
    return "\n".join(lines)


def with_table(page: str, rows: str) -> str:
    """Return a page with another table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table or one JSON object, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=160_800)
    parser.add_argument("--tokens", type=float, default=372.0, help="of a pair through the base")
    parser.add_argument("--response-tokens", type=float, default=150.0, help="of both answers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args(argv)
    pairs = Pairs(count=asked.pairs, tokens=asked.tokens, response_tokens=asked.response_tokens)
    if asked.write:
        text = with_table(PAGE.read_text(encoding="utf-8"), table(pairs))
        PAGE.write_text(text, encoding="utf-8")
    elif asked.json:
        found = {"pairs": asdict(pairs), "bases": [cost(shape, pairs) for shape in LLAMAS]}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        sys.stdout.write(table(pairs) + "\n")


if __name__ == "__main__":
    main()
