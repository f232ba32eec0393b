"""Options of `mav sample` and `mav pairs`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.options import GenerationOptions, Heads
from mav.pipeline.decoding.steering.strengths import Strength, as_strength
from mav.pipeline.runtime.named_values import names_of
from mav.pipeline.runtime.options import check_options, known, option

Rule = Literal["extremes", "all"]


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options of `mav sample`.

    Attributes:
        prompts: File or data set of prompts, as `mav compare` takes them; of conversations with
            further turns the first is answered.
        output: JSON lines, one for each answer.
        head: Folder or hub id of a head, or several by name; None for the base alone.
        base_model: The base; the one the head was trained on if None.
        alpha: Strength; 1 of one head if None, and of the base alone 0.
        n: Answers to each prompt.
        limit: Most prompts, the first in stored order; None for all.
        batch_size: Most answers decoded together; fewer when out of memory.
        decoding: How tokens are chosen; see `seed_of` for the seed of each answer.
    """

    prompts: str = field(
        metadata=known(
            help="File or data set, as ID,split=…: pairs, prompts, AlpacaEval's or MT-Bench's."
        )
    )
    output: Path = field(metadata=known(help="File of the answers, as JSON lines."))
    head: Heads | None = option(
        None,
        metavar="[NAME=]HEAD",
        default_text="none, the base alone",
        help="Folder or hub id of a head; of several NAME=HEAD, given again.",
    )
    base_model: str | None = option(
        None, default_text="the one the head was trained on", help="Base to decode with."
    )
    alpha: Strength | float | Mapping[str, float | str] | None = None
    n: int = option(4, whole=True, at_least=1, help="Answers per prompt.")
    limit: int | None = option(
        None, whole=True, at_least=1, default_text="all", help="Number of prompts: the first ones."
    )
    batch_size: int = option(8, whole=True, at_least=1, help="Answers decoded together.")
    decoding: GenerationOptions = field(default_factory=lambda: GenerationOptions(temperature=1.0))

    def __post_init__(self) -> None:
        check_options(self)
        if self.head is None and self.base_model is None:
            raise UsageError("head: got none and no `base_model`; name one of them, or both")
        if self.head is None and self.alpha is not None:
            raise UsageError("alpha: got one without a `head`, expected none; the base is alone")
        if self.n > 1 and not self.decoding.samples:
            raise UsageError(
                f"n: got {self.n} without temperature, so all answers to a prompt would be the "
                f"same; set `temperature` 1"
            )
        if self.decoding.num_beams > 1:
            raise UsageError(
                f"num_beams: got {self.decoding.num_beams}, expected 1, as an answer found by beam "
                f"search is not a sample from the model"
            )

    @property
    def strength(self) -> Strength:
        """The strength of every answer.

        Raises:
            UsageError: It names other heads than there are, or does not name them all.
        """
        if self.head is None:
            return as_strength(0.0)
        names = names_of(self.head)
        return as_strength(1.0 if self.alpha is None else self.alpha, names)


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Options of `mav pairs`.

    Attributes:
        samples: Files of answers, as `mav sample` writes them; those of several may answer the same
            prompts.
        output: JSON lines of pairs, as `mav extract` reads them.
        reward_model: Folder or hub id of a reward model that scores the answers; None to take
            their scores from a file.
        scores: File of scores, a JSON line for each answer, with `prompt`, `response` and `score`;
            None to ask the reward model.
        rule: `extremes` pairs the best with the worst answer to each prompt, `all` every two.
        margin: Least difference of two scores.
    """

    samples: tuple[str, ...] = option((), help="File of answers; may be repeated.")
    output: Path = field(metadata=known(help="File of pairs, as JSON lines."))
    reward_model: str | None = option(
        None, default_text="none", help="Folder or hub id of a reward model that scores."
    )
    scores: Path | None = option(
        None, metavar="FILE", default_text="none", help="File of scores, instead of a model."
    )
    rule: Rule = option(
        "extremes",
        choices=get_args(Rule),
        help="The best with the worst answer to each prompt, or every two.",
    )
    margin: float = option(
        0.0, number=True, at_least=0, help="Least difference of two scores; equal ones never pair."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.samples:
            raise UsageError("samples: got none, expected a file that `mav sample` wrote")
        if (self.reward_model is None) == (self.scores is None):
            raise UsageError(
                f"scores: got {'neither this nor' if self.scores is None else 'both this and'} "
                f"`reward_model`, expected one of them"
            )
