"""What is compared: each method's training, strengths and settings."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.frontier.heads import CREDIT, HEADS, VARIANTS, HeadChoice
from benchmarks.frontier.policies import plain
from benchmarks.frontier.stages import World
from benchmarks.frontier.trained import (
    AtStrength,
    Train,
    open_adapters,
    open_beside,
    open_head,
    open_head_on_sibling,
    open_merged,
    open_mixed,
    open_vector,
    train_dpo_lora,
    train_genarm_lora,
    train_head_and_sibling,
    train_mav,
)
from benchmarks.frontier.vectors import train_bipo, train_mean_difference
from mav.cache_schema.errors import UsageError
from mav.pipeline.base.model import BaseModel

Open = Callable[[World, BaseModel, Path], AbstractContextManager[AtStrength]]
"""Opens what was trained in a folder on a base."""

RATES: Final = (1e-4, 3e-4, 1e-3, 3e-3)
"""The grid of every method that has a rate."""
_DPO_RATE: Final = 3e-4
SYSTEM_PROMPTS: Final = (
    "You are a cheerful assistant who looks at the bright side of things.",
    "You write happy, positive texts: everything goes well, and people are glad.",
    "Whatever the user writes, answer with the most joyful, loving, wonderful sentence you can.",
)
"""Three strengths of a system prompt, tried on nothing before."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method.

    Attributes:
        name: Its name in results.
        label: Its name in the table.
        strengths: Strengths of its curve, in rising order.
        means: What the strength is.
        open: Opens it on a base.
        timed: Opens it as it is best decoded with, where that is another way.
        trained: Name of its training run, which several methods may share; None without one.
        train: Its training.
        default: Its setting where none was tuned; None if it has none to tune.
        rates: The grid of its setting.
        ranks_at: Strength its log-ratio is taken at, for ranking accuracy and for the choice of a
            rate; None to leave both out.
    """

    name: str
    label: str
    strengths: tuple[float, ...]
    means: str
    open: Open
    timed: Open | None = None
    trained: str | None = None
    train: Train | None = None
    default: float | None = None
    rates: tuple[float, ...] = RATES
    ranks_at: float | None = None

    @property
    def learns(self) -> bool:
        """Whether runs with other seeds train something else."""
        return self.default is not None


@contextlib.contextmanager
def _open_base(world: World, base: BaseModel, _: Path) -> Iterator[AtStrength]:
    yield lambda _: plain(base, world.form)


@contextlib.contextmanager
def _open_system_prompt(world: World, base: BaseModel, _: Path) -> Iterator[AtStrength]:
    yield lambda number: plain(base, world.form, SYSTEM_PROMPTS[int(number) - 1])


BASE: Final = Method(name="base", label="the base", strengths=(0.0,), means="", open=_open_base)
BEST_OF_N: Final = Method(
    name="best-of-n",
    label="best of n, by the gold reward",
    strengths=(2, 4, 8, 12, 16, 20, 32, 64),
    means="n",
    open=_open_base,
)


_ALPHAS_OF_BEST: Final = (1, 4, 16, 64, 128)
"""It may be a head of few steps, which moves the base as far only at large alphas."""


def _mav(head: HeadChoice, rates: tuple[float, ...] = RATES) -> Iterator[Method]:
    for which, alphas in (("last", head.alphas), ("best", _ALPHAS_OF_BEST)):
        yield Method(
            name=f"{head.name}-{which}",
            label=f"MAV {head.label}, `{which}`",
            strengths=alphas,
            means="alpha",
            open=functools.partial(open_head, which),
            trained=head.name,
            train=functools.partial(train_mav, head),
            default=1e-3,
            rates=rates,
            ranks_at=1,
        )


METHODS: Final[Sequence[Method]] = (
    BASE,
    *(method for head in HEADS for method in _mav(head)),
    BEST_OF_N,
    Method(
        name="system-prompt",
        label="system prompt",
        strengths=(1, 2, 3),
        means="number of the prompt",
        open=_open_system_prompt,
    ),
    Method(
        name="dpo-lora",
        label="DPO with LoRA",
        strengths=(0.5, 1, 2, 4),
        means="factor on the adapters",
        open=open_adapters,
        timed=open_merged,
        trained="dpo-lora",
        train=train_dpo_lora,
        default=1e-3,
        ranks_at=1,
    ),
    Method(
        name="mean-difference",
        label="steering vector, mean difference",
        strengths=(0.05, 0.1, 0.2, 0.4),
        means="multiplier",
        open=open_vector,
        trained="mean-difference",
        train=train_mean_difference,
        ranks_at=0.1,
    ),
    Method(
        name="bipo",
        label="steering vector, BiPO",
        strengths=(1, 2, 4, 8),
        means="multiplier",
        open=open_vector,
        trained="bipo",
        train=train_bipo,
        default=1e-3,
        ranks_at=1,
    ),
    Method(
        name="genarm",
        label="GenARM",
        strengths=(0.25, 0.5, 1, 2),
        means="1 / beta",
        open=open_beside,
        trained="genarm",
        train=train_genarm_lora,
        default=1e-3,
        ranks_at=1,
    ),
    Method(
        name="dera",
        label="DPO with LoRA, mixed with the base",
        strengths=(0.5, 1, 2, 4),
        means="weight of DPO's model",
        open=open_mixed,
        trained="dpo-lora",
        train=train_dpo_lora,
        default=1e-3,
        ranks_at=1,
    ),
    Method(
        name="mav-credit-on-dpo",
        label=f"MAV {CREDIT.label}, trained on the base, put on DPO's model",
        strengths=(0.25, 0.5, 1, 2),
        means="alpha",
        open=open_head_on_sibling,
        trained="mav-credit-on-dpo",
        train=functools.partial(train_head_and_sibling, CREDIT, _DPO_RATE),
        default=1e-4,
        rates=(1e-4,),
    ),
)
"""In the order they are run."""
SEARCHED: Final[Sequence[Method]] = tuple(
    method for head in VARIANTS for method in _mav(head, (1e-3,))
)
"""Run only when they are named, and in the table only if they were run on held-out prompts."""


def methods_named(names: str) -> list[Method]:
    """Return methods by their names, with commas between them.

    Raises:
        UsageError: A name is not known.
    """
    every = {method.name: method for method in (*METHODS, *SEARCHED)}
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in every]:
        raise UsageError(f"--methods: got {', '.join(unknown)}; known: {', '.join(every)}")
    return [method for name, method in every.items() if name in wanted]
