"""Runs a comparison, from prompts to summary."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import DataError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.comparison.answers import read_answers
from mav.pipeline.comparison.exports import export_answers
from mav.pipeline.comparison.generation import generate_answers
from mav.pipeline.comparison.judge import open_judge
from mav.pipeline.comparison.judged import judge_systems
from mav.pipeline.comparison.options import CompareOptions, require_one_form
from mav.pipeline.comparison.perplexity import answer_likelihoods
from mav.pipeline.comparison.prompts import Prompts, read_questions
from mav.pipeline.comparison.refusals import load_phrases
from mav.pipeline.comparison.reward import RewardModel, require_reward_model
from mav.pipeline.comparison.summary import Summary, summarize_systems
from mav.pipeline.comparison.systems import System, keys_of, measure_each
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.steering.strengths import HeadAlphas
from mav.pipeline.head.storage import find_head, read_head_config
from mav.pipeline.preferences.prompt_format import Messages, PromptFormat, prompt_format_of
from mav.pipeline.runtime.durable_files import write_file
from mav.pipeline.runtime.known_places import shown_place
from mav.pipeline.runtime.memory import free_memory

_log = logging.getLogger(__name__)

ANSWERS: Final = "answers"
"""Folder of the answers, one file per system."""
VERDICTS: Final = "verdicts.jsonl"
"""What a judge said."""
SUMMARY: Final = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers of all systems, and their measures.

    Attributes:
        prompts: The prompts.
        systems: The systems with their answers.
        summary: The measures.
    """

    prompts: Prompts
    systems: tuple[System, ...]
    summary: Summary


def compare(
    options: CompareOptions, *, base: str | Path | BaseModel | None = None, **loading: Any
) -> Comparison:
    """Answer prompts at several strengths, and measure the answers beside those of other systems.

    Writes `answers/SYSTEM.jsonl` and `verdicts.jsonl`, which a run with the same options resumes,
    `summary.json`, and the formats of `options.export`. The base is freed before a reward model is
    loaded.

    Args:
        options: What to compare.
        base: Base of all heads: hub id, folder, `.gguf` file or a loaded base; if None, the one the
            first head was trained on.
        **loading: Further arguments of `MAVInference`; device and dtype apply to reward models too.

    Raises:
        MAVError: A head, base, reward model, judge, file or option is invalid.

    Example:
        result = compare(
            CompareOptions(head=("runs/head",), prompts="prompts.txt", output=Path("runs/compare"))
        )
        print([(one.name, one.kl.value) for one in result.summary.systems])
    """
    phrases = load_phrases(options.refusals)
    prompts = read_questions(options.prompts, options.limit, beyond=bool(options.others))
    others = [_other(one.name, Path(one.place), prompts) for one in options.files]
    for model in options.reward_model:
        require_reward_model(model)
    folder = options.output / ANSWERS
    _make_folder(folder)
    with ExitStack() as held:
        judge = None
        if options.judge is not None:
            judge = held.enter_context(open_judge(options.judge, options.output / VERDICTS))
        steered, base_name = _with_base(options, prompts, folder, others, base, loading)
        systems = (*steered, *others)
        _warn_of_other_bases(systems)
        _score(options, prompts, systems, loading)
        counts = None
        if judge is not None:
            counts = judge_systems(judge, prompts, systems, options.reference_name)
    expected = keys_of(prompts, systems)
    summary = Summary(
        source=prompts.source,
        prompts=len(prompts.questions),
        dropped=prompts.dropped,
        samples=1 + max(key.sample for key in expected),
        reference=options.reference_name,
        decoding=dataclasses.asdict(options.decoding) if steered else None,
        base=base_name,
        judge=counts,
        systems=summarize_systems(prompts, systems, options.reference_name, expected, phrases),
    )
    write_file(options.output / SUMMARY, f"{json.dumps(summary.to_json(), indent=1)}\n".encode())
    for form in options.export:
        export_answers(form, prompts, systems, options.output)
    return Comparison(prompts=prompts, systems=systems, summary=summary)


def _other(name: str, path: Path, prompts: Prompts) -> System:
    read = read_answers(name, path, prompts)
    return System(
        name=name,
        answers={answer.key: answer for answer in read.answers},
        file=path.name,
        base=read.base,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror}; name an `output` that is a folder or can be created"
        ) from error


def _with_base(
    options: CompareOptions,
    prompts: Prompts,
    folder: Path,
    others: Sequence[System],
    base: str | Path | BaseModel | None,
    loading: dict[str, Any],
) -> tuple[list[System], str | None]:
    """Do everything that needs the base.

    Returns:
        All heads at all strengths, and the name of their base.
    """
    heads = options.heads
    if not heads:
        return [], None
    if loading.get("prompt_form", "auto") == "auto":
        configs = [read_head_config(find_head(head.place))[1] for head in heads]
        require_one_form(
            [prompt_format_of(config.manifest.text.prompt_template) for config in configs], heads
        )
    systems: list[System] = []
    for number, places in enumerate(options.decoded):
        if all(one.head != number for one in options.systems):
            continue
        together = isinstance(places, Mapping)
        mav = MAVInference(places, base, **loading)
        base, form = mav.base, mav.joined.form
        try:
            for name, _, alpha in (one for one in options.systems if one.head == number):
                answers = generate_answers(
                    mav,
                    name,
                    prompts,
                    alpha,
                    folder / f"{name}.jsonl",
                    decoding=options.decoding,
                    samples=options.samples,
                    batch_size=options.batch_size,
                )
                systems.append(
                    System(
                        name=name,
                        answers={answer.key: answer for answer in answers},
                        head=None if together or not alpha else heads[number].name,
                        alpha=alpha.to_json() if isinstance(alpha, HeadAlphas) else alpha,
                        base=base.fingerprint().weights_digest,
                    )
                )
        finally:
            mav.close()
        del mav
    assert isinstance(base, BaseModel)
    _measure_likelihoods(base, form, prompts, [*systems, *others], options.batch_size)
    name = shown_place(base.id)
    del base
    free_memory()
    return systems, name


def _measure_likelihoods(
    base: BaseModel,
    form: PromptFormat,
    prompts: Prompts,
    systems: Sequence[System],
    batch_size: int,
) -> None:
    """Store the likelihood of each system's answers under the base.

    End tokens are not counted, since a file does not say how its answers ended.
    """

    def measure(asked: Sequence[str | Messages], responses: Sequence[str]) -> list[float | None]:
        likelihoods = answer_likelihoods(
            base, form, asked, responses, [False] * len(asked), batch_size=batch_size
        )
        return [None if one is None else -one.logprob / one.tokens for one in likelihoods]

    for system, values in zip(systems, measure_each(prompts, systems, measure), strict=True):
        system.base_nll = values


def _warn_of_other_bases(systems: Sequence[System]) -> None:
    """Warn about answers whose KL refers to another base than that of the others."""
    digests = Counter(system.base for system in systems if system.base is not None)
    if len(digests) > 1:
        (usual, _), *_ = digests.most_common(1)
        names = ", ".join(one.name for one in systems if one.base not in (None, usual))
        _log.warning(f"The KL of {names} refers to another base than that of the other systems")


def _score(
    options: CompareOptions,
    prompts: Prompts,
    systems: Sequence[System],
    loading: dict[str, Any],
) -> None:
    """Store the rewards of each system's answers."""
    placed = {name: loading[name] for name in ("device", "dtype") if name in loading}
    names = [shown_place(model) for model in options.reward_model]
    for model, name in zip(options.reward_model, names, strict=True):
        # Two models with the same name are shown by their places.
        label = name if names.count(name) == 1 else model
        scorer = RewardModel.load(model, **placed)
        for system, values in zip(
            systems, measure_each(prompts, systems, scorer.score), strict=True
        ):
            system.rewards[label] = values
        scorer.close()
