"""Results as a table on the terminal, and as a plot."""

import contextlib
from pathlib import Path

from mav.cache_schema.errors import UsageError
from mav.pipeline.evaluation.evaluate import Evaluation
from mav.pipeline.reporting.plots import require_matplotlib
from mav.pipeline.runtime.durable_files import partial_name


def table(evaluation: Evaluation) -> str:
    """Return a table of an evaluation, one line per alpha."""
    mixed = ""
    if evaluation.alpha is not None:
        told = ",".join(f"{name}={alpha:g}" for name, alpha in evaluation.alpha.items())
        mixed = f"; alpha multiplies {told}"
    lines = [
        f"{evaluation.pairs} pairs ({evaluation.which}), {evaluation.tokens} response tokens; "
        f"95 % intervals in brackets{mixed}",
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
    if evaluation.advice:
        lines.append(evaluation.advice)
    return "\n".join(lines)


def require_plot(path: Path) -> None:
    """Check, before the work that ends in it, that a plot can be drawn to a file.

    Raises:
        UsageError: matplotlib is not installed, the file's ending is not a picture format, or no
            file can be written there.
    """
    kinds = require_matplotlib("plot")().canvas.get_supported_filetypes()
    ending = path.suffix.removeprefix(".").lower()
    if ending and ending not in kinds:
        raise UsageError(f"plot: got {path}, expected an ending such as .png, .svg or .pdf")
    require_place(path, "plot")


def require_place(path: Path, option: str) -> None:
    """Check that a file can be made in a folder, by making one and removing it.

    Args:
        path: The file that is to be written.
        option: What names it, for the message.

    Raises:
        UsageError: There is no such folder, or it cannot be written to, or the path is not a
            file's.
    """
    trial = partial_name(path)
    try:
        # A device or a pipe would be replaced by a file.
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: not a file. Name a file for `{option}`.")
        trial.touch(exist_ok=False)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}. Name a file for `{option}` in a folder that is there and "
            f"can be written to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def plot(evaluation: Evaluation, path: Path) -> None:
    """Draw accuracy and KL against alpha, with intervals.

    Raises:
        UsageError: See `require_plot`.
    """
    require_plot(path)
    results = sorted(evaluation.results, key=lambda result: result.alpha)
    alphas = [result.alpha for result in results]
    figure = require_matplotlib("plot")(figsize=(8, 3.6), layout="constrained")
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
    bands = [(r.alpha, r.kl_interval) for r in results if r.kl_interval is not None]
    divergence.fill_between(
        [alpha for alpha, _ in bands],
        [band[0] for _, band in bands],
        [band[1] for _, band in bands],
        color=line.get_color(),
        alpha=0.15,
    )
    divergence.set(xlabel="alpha", title="KL to the base, nats per token")
    figure.savefig(path, dpi=150)
