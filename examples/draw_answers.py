"""Draw the answers to one prompt at several alphas, tokens coloured by what the head changed.

    python examples/draw_answers.py runs/warm "Write one sentence about a lost key."

Green tokens became more probable than under the base alone, red ones less; the deeper, the more.
"""

import argparse
from html import escape
from pathlib import Path

from mav import GenerationOptions, MAVInference, Score

COLUMNS, CHARACTER, LINE, MARGIN = 92, 8.4, 22, 16
FULL = 2.0  # nats at which a colour is deepest


def lines_of(pieces: list[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """Break tokens into lines, at those that begin a word."""
    lines: list[list[tuple[str, float]]] = [[]]
    for text, gained in pieces:
        used = sum(len(piece) for piece, _ in lines[-1])
        if used and text[:1] == " " and used + len(text) > COLUMNS:
            lines.append([])
        lines[-1].append((text if lines[-1] else text.lstrip(), gained))
    return lines


def pieces_of(mav: MAVInference, score: Score) -> list[tuple[str, float]]:
    """Return each token's text with what the head added to its log-probability."""
    tokenizer, pieces, before = mav.base.tokenizer, [], ""
    for count, both in enumerate(score.logprobs, 1):
        text = tokenizer.decode(score.tokens[:count], skip_special_tokens=True)
        if len(text) > len(before):
            pieces.append((text[len(before) :], both - score.base_logprobs[count - 1]))
            before = text
    return [(text.replace("\n", " "), gained) for text, gained in pieces]


def drawn(prompt: str, answers: dict[float, list[tuple[str, float]]]) -> str:
    """Return the picture."""
    y, parts = float(MARGIN + LINE), []
    parts.append(f'<text x="{MARGIN}" y="{y}" font-weight="bold">{escape(prompt)}</text>')
    for alpha, pieces in answers.items():
        y += LINE * 1.4
        parts.append(f'<text x="{MARGIN}" y="{y:.0f}" fill="#667">alpha {alpha:g}</text>')
        for line in lines_of(pieces):
            y += LINE
            at = 0
            for text, gained in line:
                depth = min(abs(gained) / FULL, 1.0) * 0.55
                colour, x = "#2a9d4a" if gained > 0 else "#d1453b", MARGIN + at * CHARACTER
                if depth > 0.02:
                    parts.append(
                        f'<rect x="{x:.1f}" y="{y - 16:.0f}" width="{len(text) * CHARACTER:.1f}" '
                        f'height="20" fill="{colour}" fill-opacity="{depth:.2f}"/>'
                    )
                parts.append(
                    f'<text x="{x:.1f}" y="{y:.0f}" xml:space="preserve" '
                    f'textLength="{len(text) * CHARACTER:.1f}">{escape(text)}</text>'
                )
                at += len(text)
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'font-family="monospace" font-size="14">\n<rect width="{width:.0f}" height="{height:.0f}" '
        f'fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    """Decode, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head")
    parser.add_argument("prompt")
    parser.add_argument("--base", help="another base than the head was trained on")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("answers.svg"))
    args = parser.parse_args()

    mav = MAVInference(args.head, args.base)
    options = GenerationOptions(max_new_tokens=args.max_new_tokens)
    answers = {}
    several = mav.generate_batch([args.prompt] * len(args.alphas), args.alphas, options)
    for alpha, found in zip(args.alphas, several, strict=True):
        score = mav.score(args.prompt, found.response, alpha, ended=False)
        answers[alpha] = pieces_of(mav, score)
        print(f"alpha {alpha:g}: {found.response}")
    args.output.write_text(drawn(args.prompt, answers), encoding="utf-8")
    print(f"Written to {args.output}")


if __name__ == "__main__":
    main()
