"""Results of tasks at each alpha, and their difference from alpha 0 on the same documents."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Row = tuple[str, str, str]
"""A task or group, a metric of it, and the filter its answers went through."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric of a task at one alpha.

    Attributes:
        alpha: Strength.
        task: Task or group.
        metric: Metric, such as `acc`.
        filter: What was done to answers before they were judged; `none` for nothing.
        value: Its value.
        stderr: Its standard error, or None where lm-eval gives none.
        documents: Documents of the task; of all its tasks for a group.
        difference: Mean over the documents of this value less the one at alpha 0, or None at
            alpha 0, without it, and for metrics that are not a mean over documents.
        difference_stderr: Standard error of that mean, paired; None for a single document too.
    """

    alpha: float
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    documents: int
    difference: float | None = None
    difference_stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class HarnessReport:
    """The figures of a run.

    Attributes:
        head: The head, as it was named.
        base: Name of the base.
        lm_eval: Version of lm-eval.
        limit: Most documents of each task, or None.
        num_fewshot: Examples before each question that were asked for, or None.
        tasks: Tasks that ran, those of groups and tags included, with the version of each.
        figures: By task, metric and filter, then by alpha.
    """

    head: str
    base: str
    lm_eval: str
    limit: int | None
    num_fewshot: int | None
    tasks: Mapping[str, str]
    figures: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that are not finite are null."""
        plain = asdict(self) | {"tasks": dict(self.tasks)}
        plain["figures"] = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(figure).items()
            }
            for figure in self.figures
        ]
        return plain


def figures_of(by_alpha: Mapping[float, Mapping[str, Any]]) -> tuple[Figure, ...]:
    """Return the figures of runs of the same tasks.

    Args:
        by_alpha: What lm-eval's `evaluate` returned at each alpha.
    """
    values = {alpha: dict(_values(result)) for alpha, result in by_alpha.items()}
    samples = {alpha: _samples(result) for alpha, result in by_alpha.items()}
    rows: dict[Row, None] = {row: None for found in values.values() for row in found}
    figures = []
    for row in rows:
        for alpha in by_alpha:
            if row not in values[alpha]:
                continue
            value, stderr, documents = values[alpha][row]
            difference, of_difference = None, None
            mean_of_documents = row in samples[alpha] and math.isclose(
                _mean([*samples[alpha][row].values()]), value, rel_tol=1e-9, abs_tol=1e-12
            )
            if alpha != 0 and 0.0 in by_alpha and mean_of_documents:
                difference, of_difference = paired(samples[0.0][row], samples[alpha][row])
            figures.append(
                Figure(
                    alpha=alpha,
                    task=row[0],
                    metric=row[1],
                    filter=row[2],
                    value=value,
                    stderr=stderr,
                    documents=documents,
                    difference=difference,
                    difference_stderr=of_difference,
                )
            )
    return tuple(figures)


def paired(
    before: Mapping[int, float], after: Mapping[int, float]
) -> tuple[float | None, float | None]:
    """Return the mean of the differences between values of the same documents.

    Returns:
        The mean, and its standard error, None for a single document; None for both where the
        documents are not the same.
    """
    if before.keys() != after.keys():
        return None, None
    differences = [after[document] - before[document] for document in before]
    count, mean = len(differences), _mean(differences)
    if count == 1:
        return mean, None
    spread = sum((difference - mean) ** 2 for difference in differences) / (count - 1)
    return mean, math.sqrt(spread / count)


def table(report: HarnessReport) -> str:
    """Return a table, one line for each figure."""
    shots = "" if report.num_fewshot is None else f", {report.num_fewshot} examples before each"
    lines = [
        f"{report.base} with {report.head}; lm-eval {report.lm_eval}{shots}; +- standard errors",
    ]
    for (task, metric, through), figures in _grouped(report.figures):
        how = "" if through == "none" else f", {through}"
        cut = "" if report.limit is None else f", the first {report.limit:,} at most"
        lines += [
            "",
            f"{task}: {metric}{how} ({figures[0].documents:,} documents{cut})",
            f"{'alpha':>7}  {'value':<20}{'less alpha 0, paired':<22}".rstrip(),
        ]
        for one in figures:
            value = _told(one.value, one.stderr)
            change = (
                ""
                if one.difference is None
                else _told(one.difference, one.difference_stderr, sign="+")
            )
            lines.append(f"{one.alpha:>7g}  {value:<20}{change}".rstrip())
    return "\n".join(lines)


def _told(value: float, stderr: float | None, sign: str = "") -> str:
    error = "" if stderr is None else f" +- {stderr:.4f}"
    return f"{value:{sign}.4f}{error}"


def _grouped(figures: Sequence[Figure]) -> Iterator[tuple[Row, list[Figure]]]:
    by_row: dict[Row, list[Figure]] = {}
    for figure in figures:
        by_row.setdefault((figure.task, figure.metric, figure.filter), []).append(figure)
    yield from by_row.items()


def _values(result: Mapping[str, Any]) -> Iterator[tuple[Row, tuple[float, float | None, int]]]:
    """Yield the metrics of a result: value, standard error, documents."""
    counts = {task: int(number["effective"]) for task, number in result["n-samples"].items()}
    for task, metrics in (result["results"] | result.get("groups", {})).items():
        for name, value in metrics.items():
            metric, comma, through = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{through}")
            documents = counts.get(task)
            if documents is None:
                documents = sum(counts.get(one, 0) for one in result["group_subtasks"][task])
            known = isinstance(error, int | float)
            yield (
                (task, metric, through),
                (float(value), float(error) if known else None, documents),
            )


def _samples(result: Mapping[str, Any]) -> dict[Row, dict[int, float]]:
    """Return the value of each document, where it is a number."""
    values: dict[Row, dict[int, float]] = {}
    for task, samples in result["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, int | float):
                    row = (task, metric, sample["filter"])
                    values.setdefault(row, {})[sample["doc_id"]] = float(value)
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
