"""Scores answers with a reward model: a sequence classifier with one logit, which is the reward.

Source: Stiennon et al. 2020, "Learning to summarize from human feedback", and Bradley-Terry reward
models since; TRL's `RewardTrainer` trains them.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import transformers

from mav.cache_schema.errors import BaseModelError, DataError
from mav.pipeline.base.pretrained import load_model, read_config
from mav.pipeline.base.source import BaseSource, resolve_base
from mav.pipeline.base.tokenizer import require_vocabulary_files
from mav.pipeline.preferences.messages import Messages
from mav.pipeline.preferences.prompt_format import require_prompt
from mav.pipeline.preferences.transcripts import as_response, messages_of, transcript_of
from mav.pipeline.runtime.compute_dtype import AUTO, Dtype, resolve_dtype
from mav.pipeline.runtime.devices import pick_device
from mav.pipeline.runtime.hub_errors import one_line
from mav.pipeline.runtime.library_logging import QuietLibraries
from mav.pipeline.runtime.memory import free_memory
from mav.pipeline.runtime.progress import progress_bar

_log = logging.getLogger(__name__)

_UNLIMITED: Final = 1 << 30
"""Tokenizers without a limit report a number above this."""


@dataclass(kw_only=True)
class RewardModel:
    """A loaded reward model.

    Attributes:
        name: Hub id or folder.
        model: The transformers model; None after `close`.
        tokenizer: Its tokenizer.
        batch_size: Texts per batch.
        max_length: Most tokens of a prompt with its answer; None for no limit.
        cut: Number of scored texts that were truncated at the beginning.
        refused: Number of texts that the chat template rejected, so that they have no score.
    """

    name: str
    model: Any
    tokenizer: Any
    batch_size: int = 8
    max_length: int | None = None
    cut: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _require_one_logit(self.model.config, self.name)
        self.model.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = AUTO,
        batch_size: int = 8,
        max_length: int | None = None,
    ) -> "RewardModel":
        """Load a reward model and its tokenizer, running no code from the checkpoint.

        Args:
            model: Hub id or folder.
            revision: Branch, tag or commit of a hub repository.
            device: `auto`, or a torch device.
            dtype: Element type, or `auto` for what the device multiplies natively.
            batch_size: Texts per batch.
            max_length: Most tokens of a prompt with its answer; None for the model's limit.

        Raises:
            BaseModelError: It is not found or loadable, lacks a tensor, or does not have one logit.
            UsageError: The device is not available.
        """
        source = resolve_base(model, None, revision)
        config = _config(source)
        placed = pick_device(device)
        with _reading(source, "weights"):
            loaded = load_model(
                source,
                auto_class=transformers.AutoModelForSequenceClassification,
                dtype=resolve_dtype(dtype, placed),
            )
        require_vocabulary_files(source.folder)
        with _reading(source, "tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                **source.loaded_from, trust_remote_code=False
            )
        limits = (max_length, getattr(config, "max_position_embeddings", None))
        known = [limit for limit in (*limits, tokenizer.model_max_length) if limit]
        shortest = min(known, default=_UNLIMITED)
        return cls(
            name=source.id,
            model=loaded.to(placed),
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=shortest if shortest < _UNLIMITED else None,
        )

    def score(self, prompts: Sequence[str | Messages], responses: Sequence[str]) -> list[float]:
        """Return the reward of each answer to its prompt, or NaN.

        NaN means that the chat template rejected the messages, which `refused` counts, or that the
        reward is not finite. A text that exceeds `max_length` loses the beginning of its prompt;
        `cut` counts these.

        Args:
            prompts: Messages, transcripts, or user messages.
            responses: An answer to each prompt; it may be empty.

        Raises:
            DataError: The chat template rejects all of them.
        """
        texts, refusals = {}, []
        for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                texts[place] = answer_text(self.tokenizer, prompt, response)
            except DataError as error:
                refusals.append(error)
        if refusals:
            if not texts:
                raise refusals[0]
            self.refused += len(refusals)
            _log.warning(
                f"{self.name}: {len(refusals):,} of {len(prompts):,} answers have no score; the "
                f"first: {refusals[0]}"
            )
        kept = dict(zip(texts, self._ids([*texts.values()]), strict=True))
        # Longest first, so that running out of memory happens at once.
        order = sorted(kept, key=lambda place: -len(kept[place]))
        rewards = [math.nan] * len(prompts)
        with progress_bar(len(kept), "Scoring", "answer") as bar:
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                scored = self._score([kept[place] for place in places])
                for place, reward in zip(places, scored, strict=True):
                    rewards[place] = reward
                bar.update(len(places))
        return rewards

    def close(self) -> None:
        """Free its memory; it cannot score any more."""
        self.model = None
        free_memory()

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, shortened to the limit."""
        whole = text_ids(self.tokenizer, texts)
        kept = [shortened(ids, self.max_length, self.tokenizer) for ids in whole]
        cut = sum(len(short) < len(ids) for short, ids in zip(kept, whole, strict=True))
        if cut:
            self.cut += cut
            _log.warning(
                f"{self.name}: {cut:,} of {len(kept):,} texts exceed {self.max_length:,} tokens "
                f"and are scored without the beginning of their prompt"
            )
        return kept

    @torch.inference_mode()
    def _score(self, texts: Sequence[Sequence[int]]) -> list[float]:
        width = max(map(len, texts))
        with _padded_with(self.model, texts) as pad:
            ids = torch.tensor([[*text] + [pad] * (width - len(text)) for text in texts])
            mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
            device = self.model.device
            logits = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device), return_dict=True
            ).logits
        values = logits[:, 0].float()
        rewards: list[float] = values.where(values.isfinite(), torch.nan).tolist()
        return rewards


def require_reward_model(model: str) -> None:
    """Check that a model is a reward model, before the work whose results it will score.

    Args:
        model: Hub id or folder.

    Raises:
        BaseModelError: It is not found, or has other than one logit.
    """
    _config(resolve_base(model, None, None))


def answer_text(tokenizer: Any, prompt: str | Messages, response: str) -> str:
    """Return a prompt with its answer as text for a reward model.

    Uses the tokenizer's chat template if it has one, else a transcript of `Human:` and
    `Assistant:`.

    Raises:
        DataError: The prompt is invalid, or the chat template rejects it.
    """
    asked = require_prompt(prompt)
    if not _has_template(tokenizer):
        return transcript_of(asked) + (as_response(response) if response else "")
    messages = [*messages_of(asked), {"role": "assistant", "content": response.strip()}]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template is a program and may raise anything
        raise DataError(
            f"the reward model's chat template rejects a prompt with its answer: {one_line(error)}"
        ) from error
    return text


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts made by `answer_text`.

    A chat template writes its own special tokens; a transcript gets those that the tokenizer
    adds to a text.
    """
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        [*texts],
        add_special_tokens=not _has_template(tokenizer),
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return ids


def shortened(ids: Sequence[int], max_length: int | None, tokenizer: Any) -> list[int]:
    """Truncate ids on the left to a length; a begin-of-text token stays.

    Args:
        ids: Ids of a prompt with its answer.
        max_length: Most ids; None for no limit.
        tokenizer: Its `bos` or `cls` token is the begin-of-text token.
    """
    if max_length is None or len(ids) <= max_length:
        return [*ids]
    begins = max_length > 1 and ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
    return [ids[0], *ids[len(ids) - max_length + 1 :]] if begins else [*ids[-max_length:]]


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


@contextmanager
def _padded_with(model: Any, texts: Sequence[Sequence[int]]) -> Iterator[int]:
    """Yield an id for right padding that does not change the scores of a batch.

    Classifiers built on decoders read the reward at the last token that is not the configuration's
    padding token. Without one they read it at the very last token and refuse batches; then any id
    will do that none of these texts ends with.
    """
    config = model.config.get_text_config()
    if config.pad_token_id is not None:
        yield int(config.pad_token_id)
        return
    last = {text[-1] for text in texts}
    config.pad_token_id = next(number for number in range(len(last) + 1) if number not in last)
    try:
        yield int(config.pad_token_id)
    finally:
        config.pad_token_id = None


@contextmanager
def _reading(source: BaseSource, what: str) -> Iterator[None]:
    """Turn exceptions of transformers into one clear error, and silence its logs."""
    try:
        with QuietLibraries():
            yield
    except Exception as error:
        raise BaseModelError(
            f"{source.id}: its {what} cannot be read: {one_line(error)}"
        ) from error


def _config(source: BaseSource) -> Any:
    """Return a reward model's configuration, or refuse the model."""
    with _reading(source, "configuration"):
        config = read_config(source)
    kinds = getattr(config, "architectures", None) or []
    if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise BaseModelError(
            f"{source.id}: got a {kinds[0]}, which computes no reward, expected a sequence "
            f"classifier with one logit. Name a reward model, for instance one that TRL's "
            f"RewardTrainer wrote."
        )
    _require_one_logit(config, source.id)
    return config.get_text_config()


def _require_one_logit(config: Any, name: str) -> None:
    if config.num_labels != 1:
        raise BaseModelError(
            f"{name}: got a sequence classifier with {config.num_labels} logits "
            f"({', '.join(map(str, config.id2label.values()))}), expected one, the reward. Name a "
            f"model that was trained as a reward model (num_labels 1)."
        )
