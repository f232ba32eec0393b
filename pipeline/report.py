"""Results as a table on the terminal, and as a plot."""

from pathlib import Path

from cache_schema.errors import UsageError
from pipeline.evaluate import Evaluation


def table(evaluation: Evaluation) -> str:
    """Return a table of an evaluation, one line an alpha."""
    lines = [
        f"{evaluation.pairs} pairs ({evaluation.which}), {evaluation.tokens} response tokens; "
        f"95 % intervals in brackets",
        f"{'alpha':>6}  {'reward accuracy':<25}{'logp accuracy':<25}{'margin (nats)':<24}"
        f"{'KL/token':>9}  {'|alpha a|':>9}",
    ]
    for result in evaluation.results:
        reward = "-"
        if result.reward_accuracy is not None and result.reward_accuracy_interval is not None:
            low, high = result.reward_accuracy_interval
            reward = f"{result.reward_accuracy:.1%} [{low:.1%}, {high:.1%}]"
        low, high = result.logp_accuracy_interval
        logp = f"{result.logp_accuracy:.1%} [{low:.1%}, {high:.1%}]"
        margin = f"{result.margin:.3f}"
        if result.margin_interval is not None:
            low, high = result.margin_interval
            margin += f" [{low:.3f}, {high:.3f}]"
        lines.append(
            f"{result.alpha:>6g}  {reward:<25}{logp:<25}{margin:<24}"
            f"{result.kl_per_token:>9.4f}  {result.vector_norm:>9.3f}"
        )
    return "\n".join(lines)


def plot(evaluation: Evaluation, path: Path) -> None:
    """Draw accuracy and KL against alpha, with intervals.

    Raises:
        UsageError: matplotlib is not installed, or the file's ending is no picture format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install matplotlib") from error
    results = evaluation.results
    alphas = [result.alpha for result in results]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    accuracy, divergence = figure.subplots(1, 2)
    for label, points in (
        (
            "reward accuracy",
            [(r.alpha, r.reward_accuracy, r.reward_accuracy_interval) for r in results],
        ),
        ("logp accuracy", [(r.alpha, r.logp_accuracy, r.logp_accuracy_interval) for r in results]),
    ):
        known = [(a, value, band) for a, value, band in points if value is not None and band]
        xs, values = [a for a, _, _ in known], [value for _, value, _ in known]
        (line,) = accuracy.plot(xs, values, marker="o", label=label)
        accuracy.fill_between(
            xs,
            [band[0] for _, _, band in known],
            [band[1] for _, _, band in known],
            color=line.get_color(),
            alpha=0.15,
        )
    accuracy.axhline(0.5, color="grey", linewidth=0.8)
    accuracy.set(xlabel="alpha", title=f"Accuracy on {evaluation.pairs} pairs")
    accuracy.legend()
    (line,) = divergence.plot(alphas, [r.kl_per_token for r in results], marker="o")
    told = [(r.alpha, r.kl_interval) for r in results if r.kl_interval is not None]
    divergence.fill_between(
        [alpha for alpha, _ in told],
        [band[0] for _, band in told],
        [band[1] for _, band in told],
        color=line.get_color(),
        alpha=0.15,
    )
    divergence.set(xlabel="alpha", title="KL to the base, nats per token")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UsageError(f"--plot: got {path}, {error}") from error
