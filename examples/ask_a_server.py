"""Ask a running `mav serve` with OpenAI's client, and show what the head changed.

    mav serve --head runs/few/head &
    python examples/ask_a_server.py "How do I mend a clock?" --alpha 1.5

`alpha` is the one field that OpenAI's API does not have, so it goes into `extra_body`. With
`logprobs`, every token also tells what the base alone gave it.
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    """Stream an answer, then print its tokens with what the head did to each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--alpha", default="1", help="a number, or a schedule such as 0:2,64:0.5")
    parser.add_argument("--max-tokens", type=int, default=40)
    args = parser.parse_args()

    client = OpenAI(base_url=args.url, api_key=os.environ.get("MAV_API_KEY", "none"))
    base = next(iter(client.models.list())).id
    stream = client.chat.completions.create(
        model=base,
        messages=[{"role": "user", "content": args.prompt}],
        max_tokens=args.max_tokens,
        temperature=0,
        logprobs=True,
        stream=True,
        extra_body={"alpha": args.alpha},
    )
    tokens = []
    for chunk in stream:
        choice = chunk.choices[0]
        print(choice.delta.content or "", end="", flush=True)
        if choice.logprobs is not None:
            tokens += choice.logprobs.content or []
    print("\n")
    for token in tokens:
        # A field that OpenAI's types do not know is kept beside those they do.
        base_logprob = (token.model_extra or {})["base_logprob"]
        print(f"{token.token!r:<20} {token.logprob - base_logprob:+.3f}")


if __name__ == "__main__":
    main()
