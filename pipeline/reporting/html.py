"""An evaluation as one self-contained HTML page, without scripts or network.

Everything drawn is also there as a table. Two reports of the same evaluation differ in the date
alone.
"""

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mav.cache_schema.manifest import DataRecord
from mav.cache_schema.portable import portable
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.evaluation.evaluate import AlphaResult, Evaluation
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.storage import HeadOrigin, find_head, read_head_config
from mav.pipeline.reporting.page import html_page, write_page
from mav.pipeline.reporting.plots import (
    Chart,
    Point,
    Series,
    plots,
    require_matplotlib,
    table,
    text,
)
from mav.pipeline.reporting.tables import require_place
from mav.pipeline.reporting.training_log import read_log, training_section
from mav.pipeline.runtime.known_places import shown_place
from mav.pipeline.runtime.versions import package_versions

_PACKAGES: Final = ("mav-align", "torch", "numpy", "zarr", "matplotlib")
_PARTS: Final = {
    "held-out": "held out from training",
    "training": "those trained on",
    "all": "all of the cache",
}
_LONGER: Final = {
    "chosen": "chosen longer",
    "neither": "same length",
    "rejected": "rejected longer",
}
# The page may load nothing, whatever a name in it contains.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def require_report(path: Path) -> None:
    """Check, before the evaluation that ends in it, that a report can be written to a file.

    Raises:
        UsageError: matplotlib is not installed, or no file can be written there.
    """
    require_matplotlib("report")
    require_place(path, "report")


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write a report to a file, whole or not at all.

    Raises:
        UsageError: See `require_report`.
        MAVError: The head or the cache have gone since they were evaluated.
    """
    require_report(path)
    write_page(path, render(evaluation, datetime.now(UTC)))


def render(evaluation: Evaluation, written: datetime) -> str:
    """Return a report as HTML.

    Args:
        evaluation: What to report.
        written: Time shown on the report, in UTC.

    Raises:
        MAVError: matplotlib is not installed, or head or cache have gone.
    """
    folder, name = find_head(evaluation.head), shown_place(evaluation.head)
    sizes, origin = read_head_config(folder)
    log = read_log(folder)
    return html_page(
        title=f"MAV evaluation: {name}",
        heading="Evaluation of an alignment head",
        subject=f"<code>{text(name)}</code>",
        written=written,
        sections=(
            _by_alpha(evaluation),
            _by_length(evaluation),
            training_section(log, origin.steps),
            _subject(evaluation, sizes, origin),
        ),
        policy=_POLICY,
    )


def _by_alpha(evaluation: Evaluation) -> str:
    results = sorted(evaluation.results, key=lambda result: result.alpha)
    figures: tuple[tuple[str, Callable[[AlphaResult], Point | None], bool], ...] = (
        (
            "Reward accuracy",
            lambda r: _point(r, r.reward_accuracy, r.reward_accuracy_interval),
            True,
        ),
        ("Logp accuracy", lambda r: _point(r, r.logp_accuracy, r.logp_accuracy_interval), True),
        ("Margin (nats)", lambda r: _point(r, r.margin, r.margin_interval), False),
        (
            "KL to the base (nats per token)",
            lambda r: _point(r, r.kl_per_token, r.kl_interval),
            False,
        ),
    )
    charts = [
        Chart(
            title=title,
            x_label="alpha",
            series=[Series(label=title, points=[p for p in map(figure, results) if p])],
            is_share=is_share,
        )
        for title, figure, is_share in figures
    ]
    rows = [
        [
            f"{r.alpha:g}",
            _share(r.reward_accuracy, r.reward_accuracy_interval),
            _share(r.logp_accuracy, r.logp_accuracy_interval),
            _number(r.margin, r.margin_interval, 3),
            _number(r.kl_per_token, r.kl_interval, 4),
            _number(r.vector_norm, None, 3),
        ]
        for r in evaluation.results
    ]
    head = ["alpha", "reward accuracy", "logp accuracy", "margin (nats)", "KL (nats per token)"]
    return f"""<section>
<h2>By alpha</h2>
<p class="note">{evaluation.pairs:,} pairs ({_PARTS[evaluation.which]}), {evaluation.tokens:,} \
response tokens. Brackets and bars are 95 % intervals. Reward accuracy: the chosen answer gained \
more log-probability over the base than the rejected one. Logp accuracy: the chosen answer is the \
more probable one.</p>
{_advice(evaluation)}{plots(charts, "alpha")}
{table("Figures by alpha", [*head, "norm of alpha a"], rows)}
</section>"""


def _by_length(evaluation: Evaluation) -> str:
    if evaluation.length_alpha is None:
        return """<section>
<h2>By length</h2>
<p class="note">At alpha 0 nothing is gained, so there is no accuracy by length.</p>
</section>"""
    bins = [
        (_range(b.fewest_tokens, b.most_tokens), b.pairs, b.accuracy, b.interval)
        for b in evaluation.by_length
    ]
    groups = [(_LONGER[g.longer], g.pairs, g.accuracy, g.interval) for g in evaluation.by_longer]
    parts = (
        ("Reward accuracy by response tokens", "tokens of both answers", bins),
        ("Reward accuracy by which answer is longer", "", groups),
    )
    charts = [
        Chart(
            title=title,
            x_label=label,
            series=[
                Series(
                    label=title,
                    points=[
                        Point(x=number, y=accuracy, interval=interval)
                        for number, (_, _, accuracy, interval) in enumerate(found)
                    ],
                    joined=False,
                )
            ],
            names=[name for name, _, _, _ in found],
            is_share=True,
        )
        for title, label, found in parts
    ]
    tables = [
        table(
            title,
            [label or "group", "pairs", "reward accuracy"],
            [
                [name, f"{pairs:,}", _share(accuracy, interval)]
                for name, pairs, accuracy, interval in found
            ],
        )
        for title, label, found in parts
    ]
    return f"""<section>
<h2>By length, at alpha {evaluation.length_alpha:g}</h2>
<p class="note">A head that learned nothing but length is right in one of the groups “chosen \
longer” and “rejected longer” and wrong in the other; one that learned more is right in both.</p>
{plots(charts, "length")}
{"".join(tables)}
</section>"""


def _subject(evaluation: Evaluation, config: HeadConfig, origin: HeadOrigin) -> str:
    cache = portable(read_manifest(open_object_store(evaluation.cache)))
    trained = portable(origin.manifest)
    base = trained.base
    versions = package_versions(_PACKAGES)
    rows = {
        "head": shown_place(evaluation.head),
        "kind": config.kind,
        "parameters": f"alignment {config.alignment_parameters:,}, with fusion "
        f"{config.total_parameters:,}",
        "sizes": ", ".join(f"{name} {size:,}" for name, size in config.sizes.items())
        + f", layers {list(trained.states.layers)}",
        "objective": f"{origin.objective}, beta {origin.beta:g}",
        "steps": f"{origin.steps:,}",
        "held out": f"{origin.held_out_fraction:.3g} of prompts",
        "base": base.id + (f", revision {base.revision}" if base.revision else ""),
        "trained on": _data_line(trained.data),
        "cache evaluated": shown_place(evaluation.cache),
        "its data": _data_line(cache.data),
        "its base": f"{cache.base.id}, logits {cache.logits.encoding}, states "
        f"{cache.states.dtype} ({cache.storage.states})",
        "pairs used": f"{evaluation.pairs:,} ({_PARTS[evaluation.which]}), "
        f"{evaluation.tokens:,} response tokens",
        "software": ", ".join(
            f"{name} {version}"
            for name, version in {**versions, "Python": platform.python_version()}.items()
        ),
    }
    return f"""<section>
<h2>What was evaluated</h2>
{table("Head, cache and software", ["", ""], list(map(list, rows.items())))}
</section>"""


def _advice(evaluation: Evaluation) -> str:
    said = evaluation.advice
    return f'<p class="note"><strong>{text(said)}</strong></p>\n' if said else ""


def _data_line(data: DataRecord) -> str:
    names = ", ".join(source.name for source in data.sources)
    return f"{names}, {data.pairs:,} pairs, fingerprint {data.fingerprint[:16]}"


def _point(
    result: AlphaResult, value: float | None, interval: tuple[float, float] | None
) -> Point | None:
    return None if value is None else Point(x=result.alpha, y=value, interval=interval)


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    band = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * value:.1f} %{band}"


def _number(value: float, interval: tuple[float, float] | None, digits: int) -> str:
    band = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return f"{value:.{digits}f}{band}"


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
