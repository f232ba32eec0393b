"""Options of an extraction."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mav.cache_schema.choices import Compression, LogitsEncoding, StatesStorage, StoredDtype
from mav.cache_schema.errors import UsageError
from mav.pipeline.base.layer_selection import parse_indices
from mav.pipeline.preferences.chat_template import parse_date
from mav.pipeline.runtime.choices import Form, StorageDtype
from mav.pipeline.runtime.load_options import BaseOptions
from mav.pipeline.runtime.options import known, option

if TYPE_CHECKING:
    from mav.pipeline.base.given.wrap import GivenBase
    from mav.pipeline.preferences.sources import DataSource, GivenData


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(BaseOptions):
    """Options of `mav extract`.

    Attributes:
        base_model: Hub id, folder or `.gguf` file, an adapter's too; or a loaded transformers
            model, PEFT's around one, or a `BaseModel`. A loaded model is left as it was.
        data: The preference pairs: a `DataSource`, a path or hub id, a `datasets.Dataset`, or a
            list of dictionaries; a tuple of these for several.
        tokenizer: The tokenizer of a loaded model; that of the files it names if None.
        output: Folder or URL of the cache.
        gguf_file: File inside the base's folder or repository.
        revision: Branch, tag or commit of a hub repository.
        layer_selection: `auto`, `uniform`, or indices such as `1,15,30`.
        num_layers: How many layers `uniform` takes.
        pooled_size: Width the states are pooled to; the base's, 4,096 at most, if None.
        max_length: Most tokens of a prompt with one response.
        prompt_form: `hh`, HH-RLHF's transcript, or `chat`, the base's chat template.
        template_date: Date given to a chat template that asks for it, as YYYY-MM-DD or
            `today`; that of a cache which is begun, else today, if None.
        logits: How base logits are stored.
        top_k: Logits kept per token with `topk`.
        dtype: Type the base computes in; `auto` is what a begun cache was computed in, or what the
            device multiplies natively. A name or torch's type.
        allow_dtype_mismatch: Resume a cache that was begun in another type than `dtype`.
        device: `auto` or a torch device.
        device_map: How the base is spread over several devices; see `LoadOptions`.
        quantize: How the base's weights are quantized when they are loaded.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.
        merge_adapter: Whether to merge an adapter into its base; see `LoadOptions`.
        batch_tokens: Most tokens in one forward pass, padding included, or None for as many as
            free memory allows.
        block_tokens: Response tokens in a block, or None to choose by size.
        compression: Lossless compression of what is stored.
        storage_dtype: Type states are stored in, independent of `dtype`; `int8` and `fp8`
            are lossy, in one byte per value, and restored to bfloat16.
    """

    base_model: "GivenBase" = field(metadata=known(help="Hub id, folder, or .gguf file."))
    data: "GivenData"
    tokenizer: Any = field(default=None, repr=False)
    output: str | Path = field(
        metadata=known(help="Cache to write: a folder, or a URL such as s3://….")
    )
    layer_selection: str = option(
        "auto",
        help="auto (first, middle, last), uniform, or indices like 1,15,30; 0 is the embeddings.",
    )
    num_layers: int = option(3, whole=True, help="Layers that uniform takes.")
    pooled_size: int | None = option(
        None,
        whole=True,
        at_least=1,
        default_text="the base's, at most 4096",
        help="Width each layer is pooled to; published: 4096.",
    )
    max_length: int = option(
        512, whole=True, at_least=8, help="Most tokens of a prompt with one response."
    )
    prompt_form: Form = option(
        "hh",
        choices=get_args(Form),
        help="HH-RLHF's transcript, or the base's chat template.",
    )
    template_date: str | None = option(
        None,
        metavar="DATE",
        default_text="today; when resuming, the day it began",
        help="Date given to a chat template that asks for it: YYYY-MM-DD or today.",
    )
    logits: LogitsEncoding = option(
        "factored",
        choices=get_args(LogitsEncoding),
        help="How base logits are stored; factored is exact and smallest.",
    )
    top_k: int = option(
        64, whole=True, at_least=1, help="Logits kept per token with --logits topk."
    )
    allow_dtype_mismatch: bool = option(
        False, help="Resume a cache that was begun in another --dtype."
    )
    batch_tokens: int | None = option(
        None,
        whole=True,
        at_least=1,
        default_text="by free memory",
        help="Most tokens in a forward pass.",
    )
    block_tokens: int | None = None
    compression: Compression = option(
        "none",
        choices=get_args(Compression),
        help="Lossless compression of what is stored; blosc is smallest.",
    )
    storage_dtype: StorageDtype = option(
        "bfloat16",
        choices=get_args(StorageDtype),
        help="How states are stored, independent of --dtype; int8 and fp8 are lossy, one byte per "
        "value.",
    )

    def __post_init__(self) -> None:
        from mav.pipeline.preferences.sources import require_weights, sources_of
        from mav.pipeline.runtime.compute_dtype import dtype_name

        super().__post_init__()
        if self.template_date is not None:
            parse_date(self.template_date)
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if not str(self.output):
            raise UsageError("output: got nothing, expected a folder or a URL")
        if self.layer_selection not in ("auto", "uniform"):
            parse_indices(self.layer_selection)
        object.__setattr__(self, "data", sources_of(self.data))
        require_weights(self.sources)

    @property
    def sources(self) -> "tuple[DataSource, ...]":
        """The data sets."""
        given: Any = self.data  # which is a tuple of them from the beginning
        sources: tuple[DataSource, ...] = given
        return sources

    @property
    def stored_states(self) -> tuple[StoredDtype, StatesStorage]:
        """Type of the states as a reader gets them, and how they are stored."""
        return states_storage(self.storage_dtype)

    def require_top_k(self, vocab_size: int) -> None:
        """Refuse `top_k` of the vocabulary size or above.

        Raises:
            UsageError: Names the vocabulary size.
        """
        if self.logits == "topk" and self.top_k >= vocab_size:
            raise UsageError(
                f"top_k: got {self.top_k}, expected less than the vocabulary, {vocab_size}"
            )


def states_storage(storage: StorageDtype) -> tuple[StoredDtype, StatesStorage]:
    """Return states and storage fields of the manifest for a storage type."""
    if storage == "int8" or storage == "fp8":
        return "bfloat16", storage
    return storage, "computed"
