"""Train a head end to end, from pairs made here, and ask it something.

    python examples/train_from_python.py --base HuggingFaceTB/SmolLM2-135M-Instruct --work runs/few

The pairs prefer answers that name a first step to answers that send the asker away.
"""

import argparse
import json
import logging
from pathlib import Path

from mav import (
    DataSource,
    EvaluateOptions,
    ExtractOptions,
    MAVInference,
    TrainOptions,
    evaluate,
    extract,
    train,
)

VERBS = ("mend", "paint", "clean", "sell", "draw", "move")
THINGS = ("a kite", "the red door", "two chairs", "my bike", "an old lamp")


def write_pairs(path: Path) -> None:
    """Write one pair for each verb and thing."""
    with path.open("w", encoding="utf-8") as file:
        for verb in VERBS:
            for thing in THINGS:
                row = {
                    "prompt": f"How do I {verb} {thing}?",
                    "chosen": f"First look at {thing} from all sides, then {verb} it bit by bit.",
                    "rejected": "That is not for me to say. Ask somebody else.",
                }
                file.write(json.dumps(row) + "\n")


def main() -> None:
    """Make pairs, cache and head, and print what they come to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--work", type=Path, default=Path("runs/few"))
    parser.add_argument("--pooled-size", type=int, default=576)
    parser.add_argument("--expansion-size", type=int, default=1024)
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pairs, cache, head = args.work / "pairs.jsonl", args.work / "cache", args.work / "head"

    write_pairs(pairs)
    extract(
        ExtractOptions(
            base_model=args.base,
            data=DataSource(id=str(pairs)),
            output=cache,
            pooled_size=args.pooled_size,
        ),
    )
    train(
        TrainOptions(
            cache=cache,
            output_dir=head,
            expansion_size=args.expansion_size,
            eval_fraction=0.2,
            batch_size=4,
            num_epochs=3,
            learning_rate=3e-4,
            report_to="none",
        ),
    )
    options = EvaluateOptions(head=head, cache=cache, alphas=[0.5, 1.0, 2.0])
    for result in evaluate(options).results:
        print(
            f"alpha {result.alpha}: reward accuracy {result.reward_accuracy:.0%}, "
            f"KL {result.kl_per_token:.3f} nats per token"
        )
    mav = MAVInference(str(head))
    print(mav.generate_response("How do I mend a clock?", alpha=1.0, max_new_tokens=40))


if __name__ == "__main__":
    main()
