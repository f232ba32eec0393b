"""The figures as a table, for people and for the documentation."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.running import Outcome
from mav.cache_schema.errors import UsageError

BEGIN: Final = "<!-- benchmarks.gpu begins -->"
END: Final = "<!-- benchmarks.gpu ends -->"
_WRONG_SHOWN: Final = 12

Row = tuple[str, str]


def is_check(name: str) -> bool:
    """Tell whether a part of this name compares, rather than times."""
    return name.startswith("check ")


def all_right(found: Mapping[str, Outcome]) -> bool:
    """Tell whether every part was done, and every comparison right."""
    return all(
        outcome.state == "done" and not _wrong(name, outcome) for name, outcome in found.items()
    )


def rows(found: Mapping[str, Outcome]) -> list[Row]:
    """Return what was found, a row each."""
    return [row for name, outcome in found.items() for row in _rows_of(name, outcome)]


def table(found: Mapping[str, Outcome]) -> str:
    """Lay rows out for a terminal."""
    laid = rows(found)
    wide = max((len(name) for name, _ in laid), default=0)
    return "\n".join(f"{name:<{wide}}  {told}" for name, told in laid)


def docs_block(found: Mapping[str, Outcome]) -> str:
    """Lay rows out for the documentation."""
    lines = [f"| {name.strip()} | {told.replace('|', '/')} |" for name, told in rows(found)]
    return "\n".join([BEGIN, "", "| | |", "| --- | --- |", *lines, "", END])


def write_docs(page: Path, found: Mapping[str, Outcome]) -> None:
    """Put the block of a page in place of the one between its markers.

    Raises:
        UsageError: The page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{page}: has no line {BEGIN} with a line {END} after it")
    page.write_text(before + docs_block(found) + after, encoding="utf-8")


def _rows_of(name: str, outcome: Outcome) -> Iterator[Row]:
    if outcome.state != "done":
        last = (outcome.error or "").strip().splitlines()
        yield f"{name}: {outcome.state}", last[-1] if last else ""
    if is_check(name):
        yield from _verdicts(name, outcome)
    elif name in _FIGURES:
        yield from _FIGURES[name](outcome.figures)


def _wrong(name: str, outcome: Outcome) -> dict[str, Any]:
    if not is_check(name):
        return {}
    return {what: verdict for what, verdict in outcome.figures.items() if not verdict["right"]}


def _verdicts(name: str, outcome: Outcome) -> Iterator[Row]:
    wrong = _wrong(name, outcome)
    yield name, f"{len(outcome.figures) - len(wrong)} of {len(outcome.figures)} right"
    for what, verdict in list(wrong.items())[:_WRONG_SHOWN]:
        if verdict["failure"]:
            told = verdict["failure"].strip().splitlines()[-1]
        else:
            told = f"error {_number(verdict['error'])}, at most {verdict['tolerance']:.2g} is right"
        yield f"  {what}", told


def _number(value: Any) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def _machine(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "device_name" in figures:
        driver = figures["driver"]
        yield "device", figures["device_name"] + (f", driver {driver}" if driver else "")
        yield (
            "PyTorch, transformers, type, sizes",
            f"{figures['torch_version']}, {figures['transformers_version']}, "
            f"{figures['dtype']}, {figures['sizes']}",
        )
    if "matmul_flops_per_second" in figures:
        yield "matrix product", f"{figures['matmul_flops_per_second'] / 1e12:,.3g} TFLOP/s"
    if "copy_bytes_per_second" in figures:
        yield "copy on the device", f"{figures['copy_bytes_per_second'] / 1e9:,.0f} GB/s"


def _extraction(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "extract_tokens_per_second" in figures:
        yield (
            "extraction, written to disk",
            f"{figures['extract_tokens_per_second']:,.0f} tokens/s, "
            f"{figures['extract_share_of_matmul']:.2f} of the product, "
            f"{figures['bytes_written_per_second'] / 1e9:.2f} GB/s",
        )
    if "share_of_matmul" in figures:
        yield (
            "  its forward passes alone",
            f"{figures['tokens_per_second']:,.0f} tokens/s, "
            f"{figures['share_of_matmul']:.2f} of the product (aim 0.6)",
        )
    if "extract_over_padded" in figures:
        yield "  over the padded way", f"{figures['extract_over_padded']:.2f} times the pairs/s"


def _step(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "tokens_per_second" in figures:
        yield (
            "training step",
            f"{figures['tokens_per_second']:,.0f} tokens/s, {figures['flops_over_matmul']:.2f} of "
            f"the product (aim 0.5)",
        )
        yield (
            "  of which the optimizer",
            f"{1000 * figures['optimizer_seconds']:.1f} of {1000 * figures['step_seconds']:.1f} ms",
        )
        for kind, of_kind in [*figures["kinds"].items()][1:]:
            yield (
                f"  of a head of kind {kind}",
                f"{of_kind['tokens_per_second']:,.0f} tokens/s, "
                f"{of_kind['tokens_over_first']:.2f} times those of the published kind",
            )


def _decode(figures: Mapping[str, Any]) -> Iterator[Row]:
    peaks = figures.get("peak_over_base", {})
    for name, seconds in figures.get("seconds_per_token", {}).items():
        ratio = figures["over_base"][name]
        memory = f", memory {peaks[name]:.2f}" if name in peaks else ""
        yield f"a token, {name}", f"{1000 * seconds:.2f} ms, {ratio:.2f} of the base{memory}"
    for name, floor in figures.get("floor_latency", {}).items():
        yield f"  bytes of weights read, {name}", f"{floor:.3f} of the base"


def _serve(figures: Mapping[str, Any]) -> Iterator[Row]:
    for name, rates in figures.get("by_way", {}).items():
        yield (
            f"{figures['requests']} requests at once, {name}",
            f"{rates['tokens_per_second']:,.0f} tokens/s by {figures['through']}, without HTTP",
        )


def _stream(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "files_bytes_per_second" in figures:
        yield "reading files", f"{figures['files_bytes_per_second'] / 1e9:.2f} GB/s"
    for threads, rates in figures.get("by_threads", {}).items():
        yield (
            f"stream, {threads} threads",
            f"{rates['host'] / 1e9:.2f} GB/s, {rates['device'] / 1e9:.2f} GB/s to the device",
        )


_FIGURES: Final[dict[str, Callable[[Mapping[str, Any]], Iterator[Row]]]] = {
    "machine": _machine,
    "extraction": _extraction,
    "training step": _step,
    "decode": _decode,
    "serve": _serve,
    "stream": _stream,
}
