"""Grammar by alpha, without a hub: `python -m benchmarks.capability --head runs/head --json`.

Minimal pairs of sentences, one right and one wrong: ours of `benchmarks/minimal_pairs.py`, or with
`--blimp DIR` those of a local copy of BLiMP. A pair is right where base and head give the right
sentence as a whole a higher log-probability; guessing gets half of them. A token that begins texts
stands before each sentence, so that its first word counts too.

Shares have Wilson's 95 % interval. `change` is the share less that of alpha 0 on the same pairs,
with a normal interval over pairs: what the head costs, or gives, beside what it was trained for.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.minimal_pairs import MinimalPair, our_pairs, read_blimp
from benchmarks.synthetic import machine
from mav.cache_schema.errors import MAVError, UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.alpha import as_schedule
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.evaluation.statistics import mean_interval, wilson
from mav.pipeline.preferences.prompt_format import text_tokens
from mav.pipeline.runtime.progress import progress_bar

_AT_ONCE: Final = 32
"""Sentences of a pass."""
ALL: Final = "all"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a head and print the result."""
    args = _arguments(argv)
    try:
        result = measure(args)
    except MAVError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)
    print(json.dumps(result, indent=1) if args.json else _table(result))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the shares of pairs that are right, by alpha and phenomenon.

    Raises:
        MAVError: Head, base or pairs cannot be read.
    """
    pairs = our_pairs() if args.blimp is None else read_blimp(args.blimp)
    mav = MAVInference(args.head, args.base_model, dtype=args.dtype, device=args.device)
    right = {alpha: judged(mav, pairs, alpha) for alpha in args.alphas}
    names = [ALL, *dict.fromkeys(pair.phenomenon for pair in pairs)]
    return {
        **machine(mav.base.device),
        "base": mav.base.id,
        "head": args.head,
        "dtype": str(mav.base.dtype).removeprefix("torch."),
        "pairs": len(pairs),
        "source": "our own" if args.blimp is None else "BLiMP",
        "alphas": {
            f"{alpha:g}": {
                name: _share(
                    [name in (ALL, pair.phenomenon) for pair in pairs], found, right.get(0.0)
                )
                for name in names
            }
            for alpha, found in right.items()
        },
    }


def judged(mav: MAVInference, pairs: Sequence[MinimalPair], alpha: float) -> list[bool]:
    """Return, for each pair, whether the right sentence is the more probable one."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    found = sentence_logprobs(mav, texts, alpha)
    return [good > bad for good, bad in zip(found[::2], found[1::2], strict=True)]


def sentence_logprobs(mav: MAVInference, texts: Sequence[str], alpha: float) -> list[float]:
    """Return the log-probability of each text under base and head, in nats."""
    tokens = [_begun(mav.base, ids) for ids in text_tokens(mav.base.tokenizer, [*texts])]
    found = [0.0] * len(texts)
    # Of like lengths together, as each pass is padded to its longest.
    order = sorted(range(len(texts)), key=lambda at: len(tokens[at]))
    bar = progress_bar(len(texts), f"alpha {alpha:g}", "sentence")
    with mav.exclusive(), bar:
        for begin in range(0, len(order), _AT_ONCE):
            places = order[begin : begin + _AT_ONCE]
            requests = [
                Request(
                    prompt=tokens[at],
                    alpha=as_schedule(alpha),
                    decoding=GenerationOptions(max_new_tokens=1),
                    top_logprobs=0,
                    is_turn=False,
                    prompt_logprobs=True,
                )
                for at in places
            ]
            place_of = {id(request): at for request, at in zip(requests, places, strict=True)}
            for output in ContinuousBatchDecoder(mav.joined).add(requests):
                logprobs = output.sequence.prompt_logprobs
                found[place_of[id(output.sequence.request)]] = sum(one.aligned for one in logprobs)
            bar.update(len(places))
    return found


def _begun(base: BaseModel, ids: Sequence[int]) -> tuple[int, ...]:
    """Return a text's tokens after one that begins texts, or where there is none, ends them."""
    first = base.tokenizer.bos_token_id
    first = base.tokenizer.eos_token_id if first is None else first
    return (*ids,) if ids[:1] == [first] else (first, *ids)


def _share(
    among: Sequence[bool], right: Sequence[bool], before: Sequence[bool] | None
) -> dict[str, Any]:
    own = [value for value, counts in zip(right, among, strict=True) if counts]
    found: dict[str, Any] = {
        "pairs": len(own),
        "right": sum(own) / len(own),
        "interval": list(wilson(sum(own), len(own))),
    }
    if before is not None:
        others = [value for value, counts in zip(before, among, strict=True) if counts]
        differences = torch.tensor(own).double() - torch.tensor(others).double()
        change, interval = mean_interval(differences)
        found |= {"change": change, "change_interval": interval and list(interval)}
    return found


def _table(result: dict[str, Any]) -> str:
    """Return a table: a line for each phenomenon, a column for each alpha."""
    alphas = result["alphas"]
    lines = [
        f"{result['base']} with {result['head']}; {result['pairs']} pairs ({result['source']}); "
        f"share right, 95 % intervals in brackets",
        " " * 36 + "".join(f"alpha {alpha:<18}" for alpha in alphas),
    ]
    for name in next(iter(alphas.values())):
        cells = [by_name[name] for by_name in alphas.values()]
        told = [
            f"{one['right']:.1%} [{one['interval'][0]:.1%}, {one['interval'][1]:.1%}]"
            for one in cells
        ]
        label = f"{name} ({cells[0]['pairs']})"
        lines.append(f"{label:<36}" + "".join(f"{cell:<24}" for cell in told).rstrip())
    for alpha, by_name in alphas.items():
        whole = by_name[ALL]
        if alpha != "0" and whole.get("change_interval"):
            low, high = whole["change_interval"]
            lines.append(
                f"alpha {alpha} less alpha 0 on the same pairs: {whole['change']:+.1%} "
                f"[{low:+.1%}, {high:+.1%}]"
            )
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--head", required=True, help="folder or hub id of a head")
    parser.add_argument("--base-model", help="default: the base the head was trained on")
    parser.add_argument("--alphas", type=_alphas, default=(0.0, 1.0, 2.0), help="default: 0,1,2")
    parser.add_argument("--blimp", type=Path, metavar="DIR", help="folder of BLiMP's .jsonl files")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def _alphas(text: str) -> tuple[float, ...]:
    try:
        found = tuple(as_schedule(float(part)).at(0) for part in text.split(","))
    except (ValueError, UsageError) as error:
        raise argparse.ArgumentTypeError(f"got {text}, expected numbers such as 0,1,2") from error
    return tuple(dict.fromkeys(found))


if __name__ == "__main__":
    main()
