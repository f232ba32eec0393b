"""Use transformers' own `generate()` on the aligned model: beams, and several samples.

    python examples/beams_and_samples.py runs/few/head "How do I mend a clock?" --alpha 1.5

Inside `mav.steering(alpha)` the transformers model is the aligned one, whatever is done with it.
Where a batch has several rows, alpha may be a list with one strength for each.
"""

import argparse
from typing import Any

from mav import MAVInference


def main() -> None:
    """Search with beams, sample, and print what both gave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head")
    parser.add_argument("prompt")
    parser.add_argument("--base", help="another base than the head was trained on")
    parser.add_argument("--alpha", type=float, default=1.5)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    args = parser.parse_args()

    mav = MAVInference(args.head, args.base)
    tokenizer = mav.base.tokenizer
    # The transcript that heads are trained on by default.
    text = f"\n\nHuman: {args.prompt}\n\nAssistant:"
    inputs = tokenizer(text, return_tensors="pt").to(mav.base.device)
    length = inputs["input_ids"].shape[1]
    ways: dict[str, dict[str, Any]] = {
        "beam": {"num_beams": 4, "do_sample": False},
        "sample": {"do_sample": True, "temperature": 0.9, "top_p": 0.95},
    }
    with mav.steering(args.alpha) as model:
        for name, how in ways.items():
            found = model.generate(
                **inputs, **how, num_return_sequences=2, max_new_tokens=args.max_new_tokens
            )
            for number, row in enumerate(found, 1):
                print(f"{name} {number}:", tokenizer.decode(row[length:], skip_special_tokens=True))


if __name__ == "__main__":
    main()
