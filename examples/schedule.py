"""Let alpha change over the tokens of an answer.

    python examples/schedule.py runs/few/head "How do I mend a clock?" --schedule 0:2,32:0.5

A schedule is `token:strength` points. Between two of them the strength changes linearly, after the
last it stays: here it is strong while the answer takes its direction, and weaker later on.
"""

import argparse

from mav import AlphaSchedule, GenerationOptions, MAVInference


def main() -> None:
    """Print an answer at a constant alpha and one under a schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head")
    parser.add_argument("prompt")
    parser.add_argument("--base", help="another base than the head was trained on")
    parser.add_argument("--schedule", type=AlphaSchedule.parse, default="0:2,32:0.5")
    parser.add_argument("--max-new-tokens", type=int, default=60)
    args = parser.parse_args()

    for token in (0, 8, 16, 32, 64):
        print(f"token {token:>2}: alpha {args.schedule.at(token):.2f}")
    mav = MAVInference(args.head, args.base)
    for alpha in (AlphaSchedule.parse("1"), args.schedule):
        answer = mav.generate(
            args.prompt, alpha, GenerationOptions(max_new_tokens=args.max_new_tokens)
        )
        print(f"\nalpha {answer.alpha}:\n{answer.response}")


if __name__ == "__main__":
    main()
