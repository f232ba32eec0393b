"""Heads that steer together: loaded by name, and refused where they cannot."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch

from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.base.source import BaseSource
from mav.pipeline.decoding.options import AttachOptions, Heads, OneHead
from mav.pipeline.decoding.trained_head import TrainedHead, given_head, load_trained
from mav.pipeline.head.compatibility import check_vocabulary
from mav.pipeline.head.model import AlignmentHead, is_quantized
from mav.pipeline.preferences.prompt_format import prompt_format_of
from mav.pipeline.runtime.named_values import NAME


@dataclass(frozen=True, kw_only=True)
class TrainedHeads:
    """One head, or several that steer together.

    Attributes:
        parts: The heads.
        names: Of each; none of one head without a name.
    """

    parts: tuple[TrainedHead, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, trained: "TrainedHead | TrainedHeads") -> "TrainedHeads":
        """Return heads as they are, or one alone."""
        return cls(parts=(trained,)) if isinstance(trained, TrainedHead) else trained

    @classmethod
    def load(cls, heads: Heads, dtype: torch.dtype = torch.float32, *, int8: bool = False) -> Self:
        """Load a head, or several by name, each from a folder, a training output or the hub.

        Args:
            heads: Where they are.
            dtype: Element type they are to compute in.
            int8: Keep their weights in a byte each; needs torchao.

        Raises:
            HeadError: There is none, or its files are not a head's.
            UsageError: What int8 needs is not installed, or a name cannot be one.
        """
        if not isinstance(heads, Mapping):
            return cls(parts=(_one(heads, dtype, int8=int8),))
        names = tuple(heads)
        wrong = [name for name in names if not NAME.fullmatch(name)]
        if wrong or not names:
            raise UsageError(
                f"head: got {wrong[0]!r} as a name, expected letters, digits, '.', '+', '-' and '_'"
                if wrong
                else "head: got none, expected one or more"
            )
        parts = tuple(_one(head, dtype, int8=int8) for head in heads.values())
        return cls(parts=parts, names=names)

    @property
    def quantized(self) -> bool:
        """Whether weights of one are int8."""
        return any(is_quantized(part.head) for part in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 over the weights, and the names of several."""
        if not self.names:
            return self.parts[0].digest
        named = zip(self.names, self.parts, strict=True)
        return hashlib.sha256(
            "".join(f"{name}={part.digest}\n" for name, part in named).encode()
        ).hexdigest()

    def source(self, revision: str | None, gguf_file: str | None) -> BaseSource:
        """Find the base they were trained on.

        Raises:
            MismatchError: They were trained on several.
            UsageError: That base was never in files.
            BaseModelError: It is not found.
        """
        for first, second in pairwise(self.parts):
            if first.base.weights_digest != second.base.weights_digest:
                raise MismatchError(
                    f"{first.name} was trained on {_shown(first)} and {_uncapped(second.name)} on "
                    f"{_shown(second)}; name the base to decode with as `base_model`"
                )
        return self.parts[0].source(revision, gguf_file)

    def require_together(self, rules: AttachOptions) -> None:
        """Refuse heads that no base can have together.

        Args:
            rules: What the user allows.

        Raises:
            MismatchError: They need different vocabularies, layers or last states.
            UsageError: They were trained in different forms of prompts, and none is chosen.
        """
        for first, second in pairwise(self.parts):
            _require_two(first, second, rules)
        on_state = [part for part in self.parts if part.head.config.acts_on_state]
        for first, second in pairwise(on_state):
            widths = first.head.config.hidden_size, second.head.config.hidden_size
            if widths[0] != widths[1]:
                raise _together(first, second, "last states of", *widths)


def _one(head: OneHead, dtype: torch.dtype, *, int8: bool) -> TrainedHead:
    if isinstance(head, AlignmentHead):
        return given_head(head, int8=int8)
    if not isinstance(head, str | Path):
        raise UsageError(
            f"head: got {type(head).__name__}, expected a folder, a hub id or an AlignmentHead; a "
            f"dictionary with names for several"
        )
    return load_trained(str(head), dtype, int8=int8)


def _require_two(first: TrainedHead, second: TrainedHead, rules: AttachOptions) -> None:
    check_vocabulary(
        first.base,
        second.base,
        first.name,
        _uncapped(second.name),
        other_tokenizer=rules.allow_tokenizer_mismatch,
    )
    one, other = first.states, second.states
    same_depth = first.base.num_hidden_layers == second.base.num_hidden_layers
    if same_depth:
        alike = one.layers == other.layers
    else:
        # At a third depth the same strategy chooses the same layers, whatever they were.
        alike = (one.layer_selection, len(one.layers)) == (other.layer_selection, len(other.layers))
    if not alike:
        raise _together(first, second, "the layers", list(one.layers), list(other.layers))
    forms = prompt_format_of(first.template), prompt_format_of(second.template)
    if rules.prompt_form == "auto" and forms[0] != forms[1]:
        raise UsageError(
            f"prompt_form: {first.name} was trained in {forms[0]} and {_uncapped(second.name)} in "
            f"{forms[1]}; choose one with `prompt_form`"
        )


def _together(
    first: TrainedHead, second: TrainedHead, what: str, one: object, other: object
) -> MismatchError:
    return MismatchError(
        f"{first.name} needs {what} {one} and {_uncapped(second.name)} {other}, and heads that "
        f"steer together read the same states of one base. Train one of them again as the other "
        f"was, or decode with one alone."
    )


def _uncapped(name: str) -> str:
    return name[:1].lower() + name[1:]


def _shown(trained: TrainedHead) -> str:
    return f"{trained.base.id} ({trained.base.weights_digest[:12]})"
