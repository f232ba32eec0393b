"""The manifest: what a cache holds and where it came from.

It lives in the attributes of the store's root group under the key `mav`, travels into every head
trained from the cache, and is what `train`, `evaluate` and `generate` compare before they trust
two things to belong together. `docs/format.md` states the same fields for other programs.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from mav.cache_schema.codecs import Compression
from mav.cache_schema.errors import CacheError, ManifestError
from mav.cache_schema.quantization import StatesStorage

FORMAT_VERSION: Final = 2
"""Of the caches that are written."""
ATTRIBUTE: Final = "mav"

LogitsEncoding = Literal["factored", "dense", "topk"]
StoredDtype = Literal["bfloat16", "float16", "float32"]

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class BaseModelRecord:
    """The base model that was run."""

    id: str
    """Hub id, or name of the folder or file, without the folders above it."""
    revision: str | None
    """Commit of a hub repository; none for local files."""
    gguf_file: str | None
    """File inside the repository or folder, where the weights came from GGUF."""
    quantization: str | None
    """What its weights were stored in that is coarser than the states' type, such as `GGUF Q4_K` or
    `bitsandbytes nf4`; none for a base in full precision."""
    architecture: str
    """Class name of the causal language model."""
    weights_digest: str
    """SHA-256 over the weight files (or over the tensors of a model built in memory)."""
    config_digest: str
    """SHA-256 over the configuration: the same weights compute something else under another."""
    tokenizer_digest: str
    """SHA-256 over the token-to-id mapping."""
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    """Rows of the output embedding, which may exceed the tokenizer's length."""
    eos_token_id: int
    """The tokenizer's end-of-sequence token."""
    parameters: int | None = None
    """Number of its parameters; none where it was not recorded."""


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
    """min(hidden_size, pooled_size): pooling up repeats values and happens when read."""
    dtype: StoredDtype
    """Type they are stored in, or restored to where they are quantized."""
    computed_in: tuple[StoredDtype, ...] | None = None
    """Types the base computed in: one, or several where a cache was gone on with in another; none
    where it was not recorded, which was when states were stored as they were computed."""

    @property
    def compute_dtypes(self) -> tuple[StoredDtype, ...]:
        """Types the base computed in, recorded or known."""
        return self.computed_in or (self.dtype,)


@dataclass(frozen=True, kw_only=True)
class LogitsRecord:
    """How the base model's logits can be had back: z = cap * tanh(scale * (W h + b) / cap)."""

    encoding: LogitsEncoding
    scale: float
    softcap: float | None
    has_bias: bool
    top_k: int | None
    """Number of logits kept per token; only with encoding `topk`."""


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """How text became tokens."""

    prompt_template: str
    """How a bare user message becomes a prompt, `{prompt}` standing for the message; or
    `chat_template`, the base's own."""
    max_length: int
    """Most tokens of prompt plus one response."""
    truncation: str
    """Always `keep_response_and_prompt_end`."""
    end_token_id: int | None = None
    """Token that ends every untruncated response; none where it is the base's `eos_token_id`."""
    template_date: str | None = None
    """Day, as YYYY-MM-DD, given to the base's chat template, which asked for the date; none
    where it does not ask."""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One data set that pairs were read from, and what became of its rows."""

    id: str
    """Hub id, or name of the folder or file, without the folders above it."""
    data_dir: str | None
    split: str
    limit: int | None
    weight: float | None
    """Its part of the mixture, relative to other data sets with a weight; none to keep all."""
    held_out: bool
    """Whether its pairs, and all pairs with a prompt of it, are for evaluation alone."""
    rows: int
    """Rows read."""
    pairs: int
    """Pairs kept; `rows` = `pairs` + the sum of `dropped`."""
    fingerprint: str
    """SHA-256 over the ids of these pairs in stored order."""
    dropped: dict[str, int]
    """Rows left out, by cause."""

    @property
    def name(self) -> str:
        """What to call it."""
        return source_name(self.id, self.data_dir, self.split)


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """Which preference pairs were read, and what became of them."""

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
        """Pairs kept of all data sets."""
        return sum(source.pairs for source in self.sources)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out, by cause, in alphabetical order."""
        counts: Counter[str] = Counter()
        for source in self.sources:
            counts.update(source.dropped)
        return dict(sorted(counts.items()))


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """Where everything lies: block b owns rows [b * block_tokens, (b + 1) * block_tokens)."""

    block_tokens: int
    blocks: int
    tokens: int
    """Response tokens over all blocks."""
    digest: str
    """SHA-256 over the tokens of all pairs in stored order."""


@dataclass(frozen=True, kw_only=True)
class StorageRecord:
    """How arrays became bytes."""

    compression: Compression
    """Codec of every chunk; lossless."""
    states: StatesStorage
    """`computed`: as they are, in `states.dtype`; or a byte per value with scales, lossy."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader must know of a cache."""

    format_version: int
    created_by: dict[str, str]
    """Versions of the programs that wrote it."""
    base: BaseModelRecord
    states: StatesRecord
    logits: LogitsRecord
    text: TextRecord
    data: DataRecord
    plan: PlanRecord
    storage: StorageRecord
    checks: dict[str, float]
    """Largest relative errors measured by the checks on the first batches."""
    complete: bool
    """Set when every block of the plan is committed."""

    @property
    def final_state_layer(self) -> int | None:
        """Position in `states.layers` of the unpooled final state, or None if none is stored."""
        last = self.base.num_hidden_layers
        unpooled = self.states.stored_width == self.base.hidden_size
        return self.states.layers.index(last) if unpooled and last in self.states.layers else None

    def identity(self) -> str:
        """Return a SHA-256 over what decides the values a cache holds, and where they lie."""
        deciding = (
            self.base.weights_digest,
            self.base.config_digest,
            self.base.tokenizer_digest,
            self.base.quantization,
            # Where they were computed in another type, other digits are the same states.
            _without(dataclasses.asdict(self.states), "computed_in"),
            dataclasses.asdict(self.logits),
            self.data.fingerprint,
            dataclasses.asdict(self.plan),
            dataclasses.asdict(self.storage),
        )
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

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
        """Check and build a manifest.

        Args:
            value: Decoded JSON.
            subject: What the value was read from, for error messages.

        Raises:
            CacheError: It is of another format version.
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
        manifest = _build(cls, value, "", problems)
        if not problems:
            problems = _contradictions(manifest)
        if problems:
            raise ManifestError(subject, problems)
        return manifest


def source_name(name: str, data_dir: str | None, split: str) -> str:
    """Return what to call a data set: its id, and its subset and split where they say something."""
    return " ".join(
        [name, *([data_dir] if data_dir else []), *([split] if split != "train" else [])]
    )


def differences(stored: object, asked: object, prefix: str = "") -> dict[str, str]:
    """Return the fields in which two records differ: path -> `stored X, asked for Y`."""
    assert dataclasses.is_dataclass(stored)
    assert type(stored) is type(asked)
    found: dict[str, str] = {}
    for field in dataclasses.fields(stored):
        path = f"{prefix}{field.name}"
        a, b = getattr(stored, field.name), getattr(asked, field.name)
        if dataclasses.is_dataclass(a):
            found |= differences(a, b, f"{path}.")
        elif _holds_records(a) and len(a) == len(b):
            for number, pair in enumerate(zip(a, b, strict=True)):
                found |= differences(*pair, f"{path}[{number}].")
        elif _holds_records(a) or _holds_records(b):
            found[path] = f"stored {len(a)}, asked for {len(b)}"
        elif a != b:
            found[path] = f"stored {a!r}, asked for {b!r}"
    return found


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


def _holds_records(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _build(cls: type[_T], value: object, path: str, problems: list[str]) -> _T:
    """Build dataclass `cls` from JSON, adding to `problems`; the result counts only if none."""
    if not isinstance(value, Mapping):
        problems.append(f"{path.rstrip('.')}: got {type(value).__name__}, expected an object")
        return typing.cast("_T", None)
    hints = typing.get_type_hints(cls)
    problems += [f"{path}{unknown}: unknown field" for unknown in sorted(set(value) - set(hints))]
    optional = {
        field.name
        for field in dataclasses.fields(typing.cast("Any", cls))
        if field.default is not dataclasses.MISSING
    }
    fields: dict[str, Any] = {}
    for name, hint in hints.items():
        if name not in value:
            if name in optional:
                continue
            problems.append(f"{path}{name}: missing")
        elif dataclasses.is_dataclass(hint):
            fields[name] = _build(
                typing.cast("type", hint), value[name], f"{path}{name}.", problems
            )
        elif (record := _record_of(hint)) and isinstance(value[name], list | tuple):
            fields[name] = tuple(
                _build(record, item, f"{path}{name}[{number}].", problems)
                for number, item in enumerate(value[name])
            )
        else:
            fields[name] = _convert(hint, value[name])
            if not _fits(hint, fields[name]):
                wanted = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else hint
                problems.append(f"{path}{name}: got {value[name]!r}, expected {wanted}")
    return cls(**fields) if not problems else typing.cast("_T", None)


def _record_of(hint: object) -> type | None:
    """Return the dataclass that a hint `tuple[dataclass, ...]` names."""
    if typing.get_origin(hint) is not tuple:
        return None
    record = typing.get_args(hint)[0]
    return record if isinstance(record, type) and dataclasses.is_dataclass(record) else None


def _convert(hint: object, value: object) -> object:
    """JSON knows no tuples, and writes the float 1.0 as 1 in some programs."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, list) and any(typing.get_origin(one) is tuple for one in choices):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool):
        arguments = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if float in arguments and int not in arguments:
            return float(value)
    return value


def _fits(hint: Any, value: object) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is types.UnionType:
        return any(_fits(argument, value) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and _fits(arguments[1], _convert(arguments[1], item))
            for key, item in value.items()
        )
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
