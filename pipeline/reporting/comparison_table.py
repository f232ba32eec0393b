"""A comparison as two tables for the terminal: rewards by KL, and properties of the texts."""

from collections.abc import Sequence

from mav.pipeline.comparison.intervals import Estimate
from mav.pipeline.comparison.summary import Summary, SystemSummary


def comparison_table(summary: Summary) -> str:
    """Return the measures of a comparison as tables, one line for each system."""
    return "\n".join(
        [
            heading(summary),
            "",
            *_aligned([gain_head(summary), *(gain_row(summary, s) for s in summary.systems)]),
            "",
            *_aligned([text_head(), *(text_row(s) for s in summary.systems)]),
            *(["", *said] if (said := notes(summary)) else []),
        ]
    )


def heading(summary: Summary) -> str:
    """Return the heading: prompts, base, decoding and how to read the figures."""
    several = f", {summary.samples} answers each" if summary.samples > 1 else ""
    under = f"; base {summary.base}, {how_decoded(summary)}" if summary.base else ""
    return (
        f"{summary.prompts:,} prompts of {summary.source}{several}{under}; 95 % intervals over "
        f"prompts in brackets, against {summary.reference}"
    )


def how_decoded(summary: Summary) -> str:
    """Return how tokens were chosen."""
    chosen = summary.decoding
    if chosen is None:
        return "nothing decoded"
    temperature = chosen["temperature"]
    how = f"temperature {temperature:g}" if temperature else "greedy"
    limit = chosen.get("steer_above")
    where = "" if limit is None else f", steered above {limit:g} nats"
    return f"{how}{where}, at most {chosen['max_new_tokens']} new tokens"


def gain_head(summary: Summary) -> list[str]:
    """Return the headings of the table of rewards, wins and KL."""
    head = ["system", "answers"]
    for model in _models(summary):
        head += [f"reward {model}", "gain"]
    for name in _judges(summary):
        head += [f"win % {name}", "length-controlled"]
    limited = ["steered %"] if _any_steered(summary) else []
    return [*head, "KL (nats)", *limited, "perplexity", "tokens/s"]


def gain_row(summary: Summary, system: SystemSummary) -> list[str]:
    """Return a system's row in the table of rewards, wins and KL."""
    missing = f" (-{system.missing:,})" if system.missing else ""
    row = [system.name, f"{system.answers:,}{missing}"]
    for model in _models(summary):
        gain = system.reward_gains[model]
        is_reference = system.name == summary.reference
        row += [number(system.rewards[model], 2), "-" if is_reference else number(gain, 2)]
    for name in _judges(summary):
        wins = system.wins.get(name)
        row += ["-", "-"] if wins is None else [share(wins.rate), share(wins.length_controlled)]
    speed = "-" if system.tokens_per_second is None else f"{system.tokens_per_second:.1f}"
    limited = [share(system.steered, interval=False)] if _any_steered(summary) else []
    return [*row, number(system.kl, 2), *limited, number(system.perplexity, 1), speed]


def _any_steered(summary: Summary) -> bool:
    """Return whether a system has a share of steered tokens, of a limit that it was given."""
    return any(system.steered.value is not None for system in summary.systems)


def text_head() -> list[str]:
    """Return the headings of the table of texts."""
    return [
        *("system", "tokens", "words", "rep-2 %", "rep-3 %", "rep-4 %", "diversity"),
        *("distinct-1", "distinct-2", "empty %", "cut %", "refusing %"),
    ]


def text_row(system: SystemSummary) -> list[str]:
    """Return a system's row in the table of texts; page and `summary.json` have all intervals."""
    return [
        system.name,
        number(system.tokens, 1, interval=False),
        number(system.words, 1, interval=False),
        *(share(system.repetition[n], interval=False) for n in (2, 3, 4)),
        number(system.diversity, 3),
        *("-" if value is None else f"{value:.3f}" for value in system.distinct.values()),
        *(share(one, interval=False) for one in (system.empty, system.cut, system.refusing)),
    ]


def number(estimate: Estimate, digits: int, *, interval: bool = True) -> str:
    """Return a figure with its interval."""
    if estimate.value is None:
        return "-"
    value = f"{estimate.value:.{digits}f}"
    if not interval or estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def share(estimate: Estimate, *, interval: bool = True) -> str:
    """Return a share in percent with its interval."""
    value, low, high = (
        None if one is None else 100 * one for one in (estimate.value, estimate.low, estimate.high)
    )
    return number(Estimate(value, low, high, estimate.n), 1, interval=interval)


def _models(summary: Summary) -> list[str]:
    return [*summary.systems[0].rewards]


def _judges(summary: Summary) -> list[str]:
    return [*dict.fromkeys(name for system in summary.systems for name in system.wins)]


def notes(summary: Summary) -> list[str]:
    """Return a line for everything that was left out or failed."""
    lines = []
    if summary.dropped:
        listed = ", ".join(f"{count} {cause}" for cause, count in summary.dropped.items())
        lines.append(f"Rows of {summary.source} that are not prompts: {listed}")
    for system in summary.systems:
        if system.errors:
            lines.append(f"{system.name}: {system.errors:,} prompts could not be answered")
        elif system.missing:
            lines.append(f"{system.name}: {system.missing:,} answers are missing")
        for model, reward in system.rewards.items():
            # Every answer has words, so where they are missing there is no answer.
            without = reward.missing - system.words.missing
            if without > 0:
                lines.append(f"{system.name}: {without:,} prompts without a reward of {model}")
    if summary.judge:
        counts = ", ".join(
            f"{value:,} {name.replace('_', ' ')}" for name, value in summary.judge.items()
        )
        lines.append(f"Judge: {counts}")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows with aligned columns, the first one left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
