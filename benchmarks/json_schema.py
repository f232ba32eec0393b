"""What a JSON schema costs a token: `python -m benchmarks.json_schema`.

The installed SmolLM2-135M, or `--base-model`, under a head with random weights at alpha 1 answers
the same prompt with and without `response_format`, in turn, by the decoder of `mav serve`. The
schema has a text at the end that is longer than what is timed, so that both have as many tokens.

    ms_per_token, ms_per_token_with_schema   median time between tokens of the batch
    ratio   median over rounds of the ratio of the two
    vocabulary_seconds   reading the tokenizer, once for a base
    schema_seconds   compiling the schema, once for as long as it is among the latest
"""

import mav.pipeline  # noqa: F401 (sets what torch reads from the environment)

# isort: split

import argparse
import json
import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch

from benchmarks.synthetic import machine, require_positive
from mav.cache_schema.errors import MAVError
from mav.pipeline.base.loading import load_base
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.decoding.structured.schema import json_grammar
from mav.pipeline.decoding.structured.vocabulary import Grammar
from mav.pipeline.demo.run import installed_base

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "text": {"type": "string", "minLength": 100_000},
    },
    "required": ["title", "stars", "text"],
    "additionalProperties": False,
}
_PROMPT: Final = "\n\nHuman: Write a review of the sea as JSON.\n\nAssistant:"


def step_times(
    joined: AttachedModel, asked: argparse.Namespace, grammar: Grammar | None
) -> list[float]:
    """Return the seconds between the tokens of a batch, the first token left out."""
    ends = dict.fromkeys(joined.end_tokens, -100.0)
    decoding = GenerationOptions(max_new_tokens=asked.new_tokens, logit_bias=tuple(ends.items()))
    request = Request(
        prompt=tuple(joined.form.tokens(_PROMPT)),
        alpha=as_strength(1.0),
        decoding=decoding,
        is_turn=False,
        grammar=grammar,
    )
    decoder = ContinuousBatchDecoder(joined)
    decoder.add([request] * asked.rows)
    times = []
    while decoder.sequences:
        begun = perf_counter()
        decoder.step()
        times.append(perf_counter() - begun)
    return times


@torch.no_grad()
def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Return what `main` prints."""
    base = load_base(asked.base_model or str(installed_base()))
    mav = MAVInference.with_new_head(base, pooled_size=asked.pooled_size, expansion_size=1024)
    begun = perf_counter()
    vocabulary = mav.joined.vocabulary
    read = perf_counter()
    grammar = vocabulary.compile(json_grammar(SCHEMA))
    compiled = perf_counter()
    rounds = [
        (step_times(mav.joined, asked, None), step_times(mav.joined, asked, grammar))
        for _ in range(asked.repeats + 1)
    ][1:]
    medians = [(median(free), median(kept)) for free, kept in rounds]
    return {
        "rows": asked.rows,
        "ms_per_token": 1000 * median(free for free, _ in medians),
        "ms_per_token_with_schema": 1000 * median(kept for _, kept in medians),
        "ratio": median(kept / free for free, kept in medians),
        "vocabulary_seconds": read - begun,
        "schema_seconds": compiled - read,
        **machine(base.device),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-model", help="by default the one `make demo` installs")
    parser.add_argument("--rows", type=int, default=1, help="answers decoded together")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pooled-size", type=int, default=576)
    asked = parser.parse_args(argv)
    require_positive(parser, asked)
    try:
        found = measure(asked)
    except MAVError as error:
        sys.exit(f"Error: {error}")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
