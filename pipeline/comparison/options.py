"""Options of a comparison."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.options import GenerationOptions, Heads
from mav.pipeline.decoding.steering.strengths import HeadAlphas
from mav.pipeline.runtime.argument_names import NamedArguments
from mav.pipeline.runtime.named_values import NAME, split_name
from mav.pipeline.runtime.options import check_options, known, option

Export = Literal["alpaca-eval", "mt-bench"]
BASE: Final = "alpha=0"
"""Name of the base alone, as a system."""
STRENGTHS: Final = (0.0, 0.5, 1.0, 2.0)
"""Those each head answers at if none are named."""


class Named(NamedTuple):
    """A head or a file of answers.

    Attributes:
        name: What tables call it.
        place: Folder, file or hub id.
    """

    name: str
    place: str


class SteeredSystem(NamedTuple):
    """A head at one strength, or several heads together.

    Attributes:
        name: What tables call it.
        head: Number of what it is decoded with, among `CompareOptions.decoded`.
        alpha: The strength.
    """

    name: str
    head: int
    alpha: float | HeadAlphas


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(NamedArguments):
    """Options of the judge.

    Attributes:
        judge_url: Base URL of an OpenAI-compatible server.
        judge_model: Name of the model there.
        judge_prompt: File of a judging prompt that contains `{conversation}`, `{answer_a}` and
            `{answer_b}`; None for MAV's own.
        judge_key: Environment variable that holds the key; a local server needs none.
        judge_temperature: Temperature; None for the server's default, as some models accept none.
        judge_concurrency: Concurrent calls.
        judge_max_calls: Most calls, including retries; None for no limit.
    """

    judge_url: str = field(metadata=known(help="Base URL of an OpenAI-compatible server."))
    judge_model: str = field(metadata=known(help="Name of the judge there."))
    judge_prompt: Path | None = option(
        None, metavar="FILE", help="Judging prompt instead of MAV's own."
    )
    judge_key: str = option(
        "OPENAI_API_KEY", metavar="VARIABLE", help="Environment variable that holds the key."
    )
    judge_temperature: float | None = option(
        None, number=True, at_least=0, default_text="the server's", help="Temperature of the judge."
    )
    judge_concurrency: int = option(
        4, whole=True, at_least=1, help="Concurrent calls to the judge."
    )
    judge_max_calls: int | None = option(
        None, whole=True, at_least=1, help="Most calls to the judge, including retries."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.judge_model.strip():
            raise UsageError("judge_model: got an empty name, expected that of a model")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(NamedArguments):
    """Options of `mav compare`.

    Attributes:
        prompts: File or data set of prompts; see `read_questions`.
        output: Folder for answers and the summary.
        head: Heads, each a folder or hub id, optionally after `NAME=`; none to compare files only.
        alphas: Strengths each head answers at by itself; 0 alone if None and there is an `alpha`.
        alpha: Strengths of several of the heads in one answer, each `NAME=ALPHA,NAME=ALPHA`.
        limit: Most prompts, the first in stored order; None for all.
        samples: Answers per prompt, which differ if tokens are sampled.
        batch_size: Most prompts decoded together.
        decoding: How tokens are chosen; its seed applies to all answers, 0 if None.
        others: Answers of other systems, each `NAME=FILE`.
        reference: System that the others are compared with; None for the base if it is one of
            them, else the first.
        reward_model: Folders or hub ids of reward models.
        judge: The judge that says which answers are better; None for no judge.
        refusals: File of phrases that refusals begin with; None for MAV's own.
        export: Other tools to also write the answers for.
    """

    prompts: str = field(
        metadata=known(
            help="File or data set, as ID,split=…: pairs, prompts, AlpacaEval's or MT-Bench's."
        )
    )
    output: Path = field(metadata=known(help="Folder for answers, summary and page."))
    head: tuple[str, ...] = option(
        (), metavar="[NAME=]HEAD", help="Folder or hub id of a head; may be repeated."
    )
    alphas: tuple[float, ...] | None = None
    alpha: tuple[str, ...] = option(
        (),
        metavar="NAME=ALPHA,…",
        help="Strengths of several heads in one answer; may be repeated.",
    )
    limit: int | None = option(
        300, whole=True, at_least=1, help="Number of prompts: the first ones."
    )
    samples: int = option(1, whole=True, at_least=1, help="Answers per prompt.")
    batch_size: int = option(8, whole=True, at_least=1, help="Prompts decoded together.")
    decoding: GenerationOptions = field(default_factory=GenerationOptions)
    others: tuple[str, ...] = ()
    reference: str | None = option(
        None,
        default_text="the base, else the first system",
        help="System to compare the others with.",
    )
    reward_model: tuple[str, ...] = option(
        (), help="Folder or hub id of a reward model; may be repeated."
    )
    judge: JudgeOptions | None = None
    refusals: Path | None = option(
        None, metavar="FILE", help="Phrases that begin a refusal, one per line."
    )
    export: tuple[Export, ...] = option(
        (), help="Also write answers in the format of this tool; may be repeated."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.head and not self.others:
            raise UsageError("head: got none; name one, or give answers of systems as NAME=FILE")
        if self.alphas is None:
            object.__setattr__(self, "alphas", (0.0,) if self.alpha else STRENGTHS)
        if self.head and not self.alphas:
            raise UsageError("alphas: got none, expected at least one strength")
        if not all(map(math.isfinite, self.strengths)):
            raise UsageError(f"alphas: got {list(self.strengths)}, expected finite numbers")
        self._check_mixtures()
        if self.samples > 1 and self.head and not self.decoding.samples:
            raise UsageError(
                f"samples: got {self.samples} without temperature, so all answers to a "
                f"prompt would be the same; set `temperature` 1"
            )
        if self.decoding.num_beams > 1:
            raise UsageError(
                f"num_beams: got {self.decoding.num_beams}, expected 1, as an answer found by beam "
                f"search is not a sample from the model"
            )
        for form in self.export:
            if form not in get_args(Export):
                raise UsageError(
                    f"export: got {form!r}, expected one of {', '.join(get_args(Export))}"
                )
        names = self._names
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UsageError(f"{twice[0]}: two systems have this name; give each its own name")
        if self.reference is not None and self.reference not in names:
            raise UsageError(
                f"reference: got {self.reference!r}, expected one of {', '.join(names)}"
            )

    @property
    def heads(self) -> tuple[Named, ...]:
        """The heads with their names."""
        heads = tuple(_named(text) for text in self.head)
        names = [one.name for one in heads]
        if len(set(names)) < len(names):
            raise UsageError(
                f"head: got {', '.join(names)}, which are not all different; name them, such as "
                f"`head` first={heads[0].place}"
            )
        return heads

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths that each head answers at by itself."""
        return self.alphas or ()

    @property
    def mixtures(self) -> tuple[HeadAlphas, ...]:
        """Strengths of heads that answer together."""
        return tuple(HeadAlphas.parse(text) for text in self.alpha)

    @property
    def decoded(self) -> tuple[Heads, ...]:
        """What is decoded with in turn: each head alone, then those that answer together."""
        places = {head.name: head.place for head in self.heads}
        together = dict.fromkeys(tuple(dict(mix.schedules)) for mix in self.mixtures)
        return (
            *places.values(),
            *({name: places[name] for name in names} for names in together),
        )

    def _check_mixtures(self) -> None:
        known = [head.name for head in self.heads]
        for mix in self.mixtures:
            unknown = [name for name, _ in mix.schedules if name not in known]
            if unknown:
                raise UsageError(
                    f"alpha: got {mix}, but no head is called {unknown[0]}; expected some of "
                    f"{', '.join(known) or 'none, as no head is named'}"
                )

    @property
    def systems(self) -> tuple[SteeredSystem, ...]:
        """Each head at each strength, the base once, and heads together."""
        systems: dict[str, SteeredSystem] = {}
        for number, head in enumerate(self.heads):
            for alpha in self.strengths:
                strength = f"alpha={alpha + 0:g}"
                name = strength if len(self.head) == 1 or not alpha else f"{head.name},{strength}"
                systems.setdefault(name, SteeredSystem(name, number, alpha))
        together = [tuple(heads) if isinstance(heads, dict) else () for heads in self.decoded]
        for mix in self.mixtures:
            number = together.index(tuple(dict(mix.schedules)))
            systems.setdefault(str(mix), SteeredSystem(str(mix), number, mix))
        return tuple(systems.values())

    @property
    def files(self) -> tuple[Named, ...]:
        """The files of answers with their names."""
        files = []
        for text in self.others:
            name, equals, place = text.partition("=")
            if not (equals and place and NAME.fullmatch(name)):
                raise UsageError(
                    f"others: got {text!r}, expected NAME=FILE, the name of letters, digits, "
                    f"'.', '+', '-' and '_'"
                )
            files.append(Named(name, place))
        return tuple(files)

    @property
    def reference_name(self) -> str:
        """The system that the others are compared with."""
        names = self._names
        return self.reference or (BASE if BASE in names else names[0])

    @property
    def _names(self) -> list[str]:
        return [*(one.name for one in self.systems), *(one.name for one in self.files)]


def _named(text: str) -> Named:
    name, place = split_name(text)
    if name is not None:
        return Named(name, place)
    path = Path(text)
    # The name of a training's output folder says more than that of the folder inside it.
    last = path.parent.name if path.name in ("best", "last") and path.parent.name else path.name
    return Named(re.sub(r"[^\w.+-]", "_", last or text).lstrip(".+-") or "head", text)


def require_one_form(forms: Sequence[str], heads: Sequence[Named]) -> None:
    """Refuse heads trained with different prompt formats, since they share one base.

    Raises:
        UsageError: The formats differ.
    """
    if len(set(forms)) > 1:
        listed = ", ".join(f"{head.name} {form}" for head, form in zip(heads, forms, strict=True))
        raise UsageError(
            f"prompt_form: the heads were trained in different ones ({listed}) but are compared "
            f"with one base; choose one with `prompt_form`"
        )
