"""Put one head on one base after another and ask each the same.

    python examples/switch_bases.py runs/few/head "How do I mend a clock?" \
        --bases HuggingFaceTB/SmolLM2-135M-Instruct HuggingFaceTB/SmolLM2-135M

The bases share a tokenizer, so an entry of the alignment vector means the same token on each. Only
one base is in memory at a time; one that does not belong to the head is refused and named.
"""

import argparse
import logging

from mav import MAVError, MAVInference


def main() -> None:
    """Answer on each base that fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head")
    parser.add_argument("prompt")
    parser.add_argument("--bases", nargs="+", required=True)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    first, *others = args.bases
    mav = MAVInference(args.head, first)
    for base in (first, *others):
        if base != first:
            try:
                mav.switch_base_model(base)
            except MAVError as error:
                print(f"--- {base} is refused: {error}")
                continue
        print(f"--- {base}, alpha {args.alpha:g}")
        print(mav.generate_response(args.prompt, args.alpha, max_new_tokens=args.max_new_tokens))


if __name__ == "__main__":
    main()
