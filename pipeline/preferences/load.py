"""The pairs of all data sets of an extraction, read, tokenized and mixed."""

import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import DataError
from mav.cache_schema.manifest import DataRecord, SourceRecord, TextRecord
from mav.pipeline.preferences.mixture import mix
from mav.pipeline.preferences.prompt_format import TEMPLATES, choose_prompt_format
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TRUNCATION, TokenizedPairs, tokenize_in
from mav.pipeline.runtime.choices import Form
from mav.pipeline.runtime.progress import progress_bar

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadData:
    """The pairs of all data sets, tokenized, with counts.

    Attributes:
        pairs: The pairs, in stored order.
        text: How text became tokens.
        source: uint16 [pairs], which data set each came from.
        sources: What became of the rows of each data set.
    """

    pairs: TokenizedPairs
    text: TextRecord
    source: NDArray[np.uint16]
    sources: tuple[SourceRecord, ...]

    def record(self) -> DataRecord:
        """Return what the manifest says of it."""
        return DataRecord(
            sources=self.sources,
            fingerprint=self.pairs.fingerprint(),
            prompts_truncated=self.pairs.prompts_truncated,
            responses_cut=self.pairs.responses_cut,
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return what the cache keeps of each pair, [pairs]."""
        return {
            "pair_id": self.pairs.pair_id,
            "prompt_id": self.pairs.prompt_id,
            "source": self.source,
            "source_row": self.pairs.source_row,
        }


def read_data(
    sources: Sequence[DataSource],
    tokenizer: Any,
    *,
    max_length: int,
    form: Form,
    date: datetime.date | None,
) -> ReadData:
    """Read data sets, tokenize and mix their pairs, and log what was left out.

    Args:
        sources: The data sets.
        tokenizer: The base's tokenizer.
        max_length: Most tokens of a prompt with one response.
        form: What prompts look like to the base.
        date: Date given to a chat template that asks for today's.

    Raises:
        DataError: One cannot be read, or has no usable pair.
        UsageError: The chat template is wanted and the tokenizer has none.
        BaseModelError: The tokenizer has no end-of-sequence token.
    """
    prompt_format = choose_prompt_format(form, TEMPLATES[form], tokenizer, date)
    counts = [ReadCounts() for _ in sources]
    with progress_bar(None, "Tokenizing", "pair") as bar:
        parts = [
            tokenize_in(prompt_format, read_pairs(source, count), max_length, bar.update)
            for source, count in zip(sources, counts, strict=True)
        ]
    for source, count, part in zip(sources, counts, parts, strict=True):
        if not len(part):
            raise DataError(
                f"{source.name}: no usable pair among {count.rows} rows (dropped: "
                f"{_listed(count.dropped + part.dropped)}). Answers must differ, and stand in "
                f"transcripts with an 'Assistant:' turn or beside a column 'prompt'."
            )
    mixed = mix(parts, sources, set[int]().union(*(count.held_out_prompts for count in counts)))
    records = []
    for number, (source, count, part) in enumerate(zip(sources, counts, parts, strict=True)):
        dropped = count.dropped + part.dropped + mixed.dropped[number]
        records.append(
            SourceRecord(
                id=source.stored_id,
                data_dir=source.data_dir,
                split=source.split,
                limit=source.limit,
                weight=source.weight,
                held_out=source.is_held_out,
                rows=count.rows,
                pairs=mixed.kept(number),
                fingerprint=mixed.fingerprint(number),
                dropped=dict(sorted(dropped.items())),
            )
        )
        _log.log(logging.WARNING if dropped else logging.INFO, _summary(source, records[-1]))
    end = prompt_format.end_token
    text = TextRecord(
        prompt_template=TEMPLATES[form],
        max_length=max_length,
        truncation=TRUNCATION,
        end_token_id=None if end == tokenizer.eos_token_id else end,
        template_date=None if date is None else date.isoformat(),
    )
    data = ReadData(pairs=mixed.pairs, text=text, source=mixed.source, sources=tuple(records))
    _warn_of_limit(data.pairs, max_length)
    return data


def _summary(source: DataSource, record: SourceRecord) -> str:
    use = ", for evaluation alone" if record.held_out else ""
    return (
        f"{source.name}: {record.rows} rows, {record.pairs} pairs kept{use}; dropped: "
        f"{_listed(record.dropped)}"
    )


def _listed(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {cause}" for cause, number in sorted(dropped.items())) or "none"


def _warn_of_limit(pairs: TokenizedPairs, max_length: int) -> None:
    if pairs.prompts_truncated or pairs.responses_cut:
        _log.warning(
            f"The limit of {max_length} tokens took the beginning of {pairs.prompts_truncated} "
            f"prompts and the end of an answer of {pairs.responses_cut} pairs"
        )
