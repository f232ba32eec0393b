"""The manifest: what a cache holds and what it was made from.

It is stored in the attributes of the root group under the key `mav` and copied into every head
trained from the cache. `train`, `evaluate` and `generate` compare manifests to decide whether a
cache, a head and a base model fit together. `docs/format.md` documents the fields as well.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mav.cache_schema.choices import Compression, LogitsEncoding, StatesStorage, StoredDtype
from mav.cache_schema.errors import CacheError, ManifestError
from mav.cache_schema.typed_json import build_dataclass

FORMAT_VERSION: Final = 2
"""Version of the format that this program reads and writes."""
ATTRIBUTE: Final = "mav"


@dataclass(frozen=True, kw_only=True)
class BaseModelRecord:
    """The base model that was run."""

    id: str
    """Hub id, or name of the folder or file without its parent folders."""
    revision: str | None
    """Commit of the hub repository; None for local files."""
    gguf_file: str | None
    """GGUF file inside the repository or folder; None for other weights."""
    quantization: str | None
    """Quantization of the weights, such as `GGUF Q4_K` or `bitsandbytes nf4`; None for a base in
    full precision."""
    architecture: str
    """Class name of the causal language model."""
    weights_digest: str
    """SHA-256 over the weight files (or over the tensors of a model built in memory)."""
    config_digest: str
    """SHA-256 over the configuration, on which the result of the same weights depends."""
    tokenizer_digest: str
    """SHA-256 over the token-to-id mapping."""
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    """Rows of the output embedding, which may exceed the tokenizer's length."""
    eos_token_id: int
    """The tokenizer's end-of-sequence token."""
    parameters: int | None = None
    """Number of parameters; None if it was not recorded."""


@dataclass(frozen=True, kw_only=True)
class StatesRecord:
    """Which hidden states are stored, and how."""

    layer_selection: str
    """`auto`, `uniform` or `explicit`."""
    layers: tuple[int, ...]
    """Indices as in `output_hidden_states=True`: 0 the embeddings, L the final-norm output."""
    pooled_size: int
    """Width each layer has after pooling, as the head sees it."""
    stored_width: int
    """min(hidden_size, pooled_size): pooling to a larger width repeats values, so it is done on
    reading."""
    dtype: StoredDtype
    """Type the states are stored in, or dequantized to."""
    computed_in: tuple[StoredDtype, ...] | None = None
    """Types the base computed in: several if a cache was resumed in another type; None if they were
    not recorded, in which case the base computed in `dtype`."""

    @property
    def compute_dtypes(self) -> tuple[StoredDtype, ...]:
        """Types the base computed in, whether or not they were recorded."""
        return self.computed_in or (self.dtype,)


@dataclass(frozen=True, kw_only=True)
class LogitsRecord:
    """How to reconstruct the base model's logits: z = cap * tanh(scale * (W h + b) / cap)."""

    encoding: LogitsEncoding
    scale: float
    softcap: float | None
    has_bias: bool
    top_k: int | None
    """Number of logits stored per token; only with the encoding `topk`."""


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """How text was tokenized."""

    prompt_template: str
    """How a plain user message becomes a prompt, with `{prompt}` instead of the message; or
    `chat_template` for the base's own template."""
    max_length: int
    """Maximum number of tokens of a prompt and one response together."""
    truncation: str
    """Always `keep_response_and_prompt_end`."""
    end_token_id: int | None = None
    """Token that ends every untruncated response; None if it is the base's `eos_token_id`."""
    template_date: str | None = None
    """Date given to the base's chat template, as YYYY-MM-DD; None if the template does not use the
    date."""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """A data set that pairs were read from, and how many of its rows were kept and dropped."""

    id: str
    """Hub id, or name of the folder or file without its parent folders."""
    data_dir: str | None
    split: str
    limit: int | None
    weight: float | None
    """Weight in the mixture, relative to other weighted data sets; None if all pairs are kept."""
    held_out: bool
    """Whether its pairs, and all pairs that share a prompt with them, are for evaluation only."""
    rows: int
    """Rows read."""
    pairs: int
    """Pairs kept; `rows` = `pairs` + the sum of `dropped`."""
    fingerprint: str
    """SHA-256 over the ids of its pairs in stored order."""
    dropped: dict[str, int]
    """Dropped rows, by cause."""

    @property
    def name(self) -> str:
        """Name to show: id, and subset and split where given."""
        return source_name(self.id, self.data_dir, self.split)


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The preference pairs that were read, and what was done with them."""

    sources: tuple[SourceRecord, ...]
    fingerprint: str
    """SHA-256 over the ids of the kept pairs in stored order."""
    prompts_truncated: int
    responses_cut: int

    @property
    def rows(self) -> int:
        """Rows read from all data sets."""
        return sum(source.rows for source in self.sources)

    @property
    def pairs(self) -> int:
        """Pairs kept from all data sets."""
        return sum(source.pairs for source in self.sources)

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped rows of all data sets, by cause, in alphabetical order."""
        counts: Counter[str] = Counter()
        for source in self.sources:
            counts.update(source.dropped)
        return dict(sorted(counts.items()))


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """How rows are divided: block b owns rows [b * block_tokens, (b + 1) * block_tokens)."""

    block_tokens: int
    blocks: int
    tokens: int
    """Response tokens in all blocks."""
    digest: str
    """SHA-256 over the tokens of all pairs in stored order."""


@dataclass(frozen=True, kw_only=True)
class StorageRecord:
    """How arrays are encoded."""

    compression: Compression
    """Lossless codec of every chunk."""
    states: StatesStorage
    """`computed`: unquantized, in `states.dtype`; else one byte per value and scales, lossy."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader must know about a cache."""

    format_version: int
    created_by: dict[str, str]
    """Programs that wrote it, and their versions."""
    base: BaseModelRecord
    states: StatesRecord
    logits: LogitsRecord
    text: TextRecord
    data: DataRecord
    plan: PlanRecord
    storage: StorageRecord
    checks: dict[str, float]
    """Largest relative errors that the checks measured on the first batches."""
    complete: bool
    """Whether every block of the plan is committed."""

    @property
    def final_state_layer(self) -> int | None:
        """Position in `states.layers` of the unpooled final state, or None if it is not stored."""
        last = self.base.num_hidden_layers
        unpooled = self.states.stored_width == self.base.hidden_size
        return self.states.layers.index(last) if unpooled and last in self.states.layers else None

    def identity(self) -> str:
        """Return a SHA-256 over everything that determines a cache's values and their places."""
        determining = (
            self.base.weights_digest,
            self.base.config_digest,
            self.base.tokenizer_digest,
            self.base.quantization,
            # States computed in another type differ by rounding only.
            _without(dataclasses.asdict(self.states), "computed_in"),
            dataclasses.asdict(self.logits),
            self.data.fingerprint,
            dataclasses.asdict(self.plan),
            dataclasses.asdict(self.storage),
        )
        return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings, numbers and None."""
        plain: dict[str, Any] = dataclasses.asdict(self)
        plain["states"]["layers"] = list(self.states.layers)
        if self.states.computed_in is None:
            del plain["states"]["computed_in"]
        else:
            plain["states"]["computed_in"] = list(self.states.computed_in)
        if self.base.parameters is None:
            del plain["base"]["parameters"]
        plain["data"]["sources"] = list(plain["data"]["sources"])
        return plain

    @classmethod
    def from_json(cls, value: object, subject: str) -> "Manifest":
        """Validate and build a manifest.

        Args:
            value: Decoded JSON.
            subject: Where the value was read from, for error messages.

        Raises:
            CacheError: It has another format version.
            ManifestError: It has missing, unknown or mistyped fields, or contradicts itself.
        """
        if not isinstance(value, Mapping):
            raise ManifestError(subject, [f"got {type(value).__name__}, expected an object"])
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{subject}: format version {version!r}, but this MAV reads version "
                f"{FORMAT_VERSION}. Install the MAV that wrote it, or extract again."
            )
        problems: list[str] = []
        manifest = build_dataclass(cls, value, "", problems)
        if not problems:
            problems = _contradictions(manifest)
        if problems:
            raise ManifestError(subject, problems)
        return manifest


def source_name(name: str, data_dir: str | None, split: str) -> str:
    """Return the name to show for a data set: its id, subset if any, and split unless `train`."""
    return " ".join(
        [name, *([data_dir] if data_dir else []), *([split] if split != "train" else [])]
    )


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _contradictions(manifest: Manifest) -> list[str]:
    base, states, logits, data = manifest.base, manifest.states, manifest.logits, manifest.data
    problems = []
    if not states.layers or any(not 0 <= i <= base.num_hidden_layers for i in states.layers):
        problems.append(
            f"states.layers: got {list(states.layers)}, expected at least one index, "
            f"each from 0 to base.num_hidden_layers = {base.num_hidden_layers}"
        )
    if states.stored_width != min(base.hidden_size, states.pooled_size):
        problems.append(
            f"states.stored_width: got {states.stored_width}, expected "
            f"min({base.hidden_size}, {states.pooled_size})"
        )
    if states.computed_in == ():
        problems.append("states.computed_in: got none, expected at least one type")
    if base.parameters is not None and base.parameters < 1:
        problems.append(f"base.parameters: got {base.parameters}, expected at least 1")
    if (logits.top_k is None) == (logits.encoding == "topk"):
        problems.append(f"logits.top_k: got {logits.top_k!r} with encoding {logits.encoding!r}")
    if not data.sources:
        problems.append("data.sources: got none, expected at least one")
    for number, source in enumerate(data.sources):
        expected = source.pairs + sum(source.dropped.values())
        if source.rows != expected:
            problems.append(
                f"data.sources[{number}].rows: got {source.rows}, expected pairs + dropped = "
                f"{expected}"
            )
    return problems
