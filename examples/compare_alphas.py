"""Answer one prompt at several alphas and print the answers side by side.

    python examples/compare_alphas.py runs/few/head "How do I mend a clock?" --alphas 0 1 2

The answers are decoded together: a batch may have a strength for each of its rows.
"""

import argparse
import itertools
import textwrap

from mav import GenerationOptions, MAVInference

WIDTH = 36


def main() -> None:
    """Decode and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head")
    parser.add_argument("prompt")
    parser.add_argument("--base", help="another base than the head was trained on")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--max-new-tokens", type=int, default=60)
    args = parser.parse_args()

    mav = MAVInference(args.head, args.base)
    answers = mav.generate_batch(
        [args.prompt] * len(args.alphas),
        args.alphas,
        GenerationOptions(max_new_tokens=args.max_new_tokens),
    )
    columns = [
        [f"alpha {answer.alpha:g}", "-" * WIDTH, *textwrap.wrap(answer.response, WIDTH)]
        for answer in answers
    ]
    for row in itertools.zip_longest(*columns, fillvalue=""):
        print("   ".join(f"{cell:<{WIDTH}}" for cell in row).rstrip())


if __name__ == "__main__":
    main()
