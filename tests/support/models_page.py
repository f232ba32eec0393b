"""The table of architectures in `docs/models.md`.

python -m tests.support.models_page          print it
python -m tests.support.models_page --write  put it into the page
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mav.pipeline.engine.architectures import NOT_TRIED, REFUSED, RUNS_IN
from mav.pipeline.extraction.packing import PACKINGS
from tests.support.models.architectures import CATALOGUE, Variant

PAGE: Final = Path(__file__).parents[2] / "docs" / "models.md"

BEGIN: Final = "<!-- Written by `python -m tests.support.models_page --write`; do not edit. -->"

END: Final = "<!-- End of what is written. -->"


def table(variants: Iterable[Variant]) -> str:
    """Return the table, a line for each model type, in the order of the variants."""
    by_type: dict[str, list[Variant]] = {}
    for variant in variants:
        by_type.setdefault(variant.model_type, []).append(variant)
    lines = [
        "| `model_type` | such as | its peculiarities | pairs are run | in vLLM |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model_type, kinds in by_type.items():
        examples = [example for kind in kinds for example in kind.examples]
        found = [peculiarity for kind in kinds for peculiarity in kind.peculiarities]
        ways = {
            packing: [it.words for it in found if it.packing == packing] for packing in PACKINGS
        }
        run = "padded" if ways["shared_prompt"] else "packed"
        if ways["separate"]:
            run = f"each answer in its own sequence with {_listed(ways['separate'])}"
            if any(kind.packing != "separate" for kind in kinds):
                run = f"{'padded' if ways['shared_prompt'] else 'packed'}; {run}"
        listed = _listed(it.words for it in found)
        words = [f"`{model_type}`", ", ".join(examples), listed, run, _in_vllm(model_type)]
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def architecture_of(model_type: str) -> str:
    """Return the class of a model type, as configurations name it."""
    found: str = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return found


def _in_vllm(model_type: str) -> str:
    architecture = architecture_of(model_type)
    code = RUNS_IN.get(architecture)
    if code is not None:
        return "yes" if code == "vllm" else "yes, in transformers' code"
    refused = REFUSED.get(architecture)
    return f"not tried: {NOT_TRIED[architecture]}" if refused is None else f"no: {refused}"


def _listed(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))


def table_in(readme: str) -> str:
    """Return the table a page has between its markers."""
    return readme.partition(BEGIN)[2].partition(END)[0].strip("\n")


def with_table(readme: str, rows: str) -> str:
    """Return a page with another table between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE} has no lines {BEGIN} and {END}"
    return f"{before}{begin}\n\n{rows}\n\n{end}{after}"


def _main(arguments: list[str]) -> None:
    rows = table(CATALOGUE.values())
    if arguments == ["--write"]:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    else:
        sys.stdout.write(rows + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
