"""Which base and which heads are decoded with; weights are random where there are none to load."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import tokenizers
import torch
import transformers
from transformers import GenerationConfig

from benchmarks.baselines.decoding import weight_bytes
from mav.pipeline.base.layer_selection import select_layers
from mav.pipeline.base.loading import load_source, preview_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import resolve_base
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead, quantize_head
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.runtime.compute_dtype import AUTO, native_dtype
from mav.pipeline.runtime.load_options import LoadOptions

_HEAD: Final = re.compile(
    r"((?P<kind>unembedding|bottleneck)-)?(?P<pooled>[1-9]\d*)(x(?P<inner>[1-9]\d*))?"
)
LLAMA_7B: Final[dict[str, Any]] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}


class EndlessBase(BaseModel):
    """A base none of whose tokens ends an answer."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """None."""
        return frozenset()


@dataclass(frozen=True, kw_only=True)
class BaseShape:
    """Which base is decoded with.

    Attributes:
        name: Hub id, folder or `.gguf` file; None for random weights.
        layers: Decoder layers of the random one.
        sizes: Its other sizes, as its configuration names them; LLaMA-7B's if not given.
        dtype: Element type; what the device has natively if None.
    """

    name: str | None
    layers: int
    sizes: Mapping[str, Any] = field(default_factory=lambda: LLAMA_7B)
    dtype: torch.dtype | None = None

    def preview(self) -> BaseModel:
        """Return it without weights."""
        if self.name is not None:
            return preview_base(resolve_base(self.name, None, None))
        return self._random(torch.device("meta"))

    def load(self, device: torch.device) -> EndlessBase:
        """Load it, or make it."""
        if self.name is not None:
            placement = LoadOptions(dtype=self.dtype or AUTO, device=str(device))
            found = load_source(resolve_base(self.name, None, None), placement)
        else:
            found = self._random(device)
        # What the model's own settings name would fill whatever a caller leaves open.
        found.model.generation_config = GenerationConfig(pad_token_id=0)
        return EndlessBase(model=found.model, tokenizer=found.tokenizer, source=found.source)

    def _random(self, device: torch.device) -> BaseModel:
        config = transformers.AutoConfig.for_model(**self.sizes, num_hidden_layers=self.layers)
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device.type == "meta" else native_dtype(device)
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=self.dtype or dtype)
        vocabulary = {str(token): token for token in range(config.vocab_size)}
        # Its words are the numbers of its tokens.
        end, other = "0", "1"
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=other))
        words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end)
        return BaseModel(model=model, tokenizer=tokenizer)


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Which head is put on it, three layers read as `auto` chooses them.

    Attributes:
        pooled_size: Width each layer's state is pooled to.
        expansion_size: Width of an `mlp`'s widest layer, or of the narrow one of another kind.
        kind: What it is made of.
        int8: Whether its weights take a byte each.
    """

    pooled_size: int
    expansion_size: int | None
    kind: HeadKind = "mlp"
    int8: bool = False

    @classmethod
    def parse(cls, text: str, *, int8: bool = False) -> "HeadShape":
        """Read `576x1024`, `unembedding-576`, `unembedding-576x64` or `bottleneck-576x256`.

        Raises:
            ValueError: It is none of these.
        """
        found = _HEAD.fullmatch(text)
        if found is None or (found["inner"] is None and found["kind"] != "unembedding"):
            raise ValueError(f"got {text!r}, expected such as 576x1024, unembedding-576")
        kind: Any = found["kind"] or "mlp"
        inner = None if found["inner"] is None else int(found["inner"])
        return cls(pooled_size=int(found["pooled"]), expansion_size=inner, kind=kind, int8=int8)

    @property
    def name(self) -> str:
        """Its kind and sizes, as `parse` reads them, and whether it is in int8."""
        kind = "" if self.kind == "mlp" else f"{self.kind}-"
        inner = "" if self.expansion_size is None else f"x{self.expansion_size}"
        return f"{kind}{self.pooled_size}{inner}{' int8' if self.int8 else ''}"

    def parameters(self, base: BaseModel) -> int:
        """Number of its parameters on a base, whose weights need not be loaded."""
        return self._config(base).total_parameters

    def making_bytes(self, base: BaseModel, itemsize: int = 2) -> int:
        """Bytes that making it takes: torchao writes float32 copies of a layer to quantize it."""
        return (8 + itemsize if self.int8 else itemsize) * self.parameters(base)

    def joined(self, base: BaseModel) -> AlignedLM:
        """Return it on a base, with random weights; nothing is hooked yet."""
        with torch.device("meta"):
            head = AlignmentHead(self._config(base)).to(base.dtype).eval()
        head = head.to_empty(device=base.logits_device).requires_grad_(False)
        torch.manual_seed(0)
        for parameter in head.parameters():
            parameter.normal_(std=0.02)
        layers = select_layers("auto", 3, base.num_hidden_layers)
        if self.int8:
            quantize_head(head)
        return AlignedLM(base, head, layers)

    def _config(self, base: BaseModel) -> HeadConfig:
        inner = self.expansion_size
        return HeadConfig(
            kind=self.kind,
            num_layers=3,
            pooled_size=self.pooled_size,
            expansion_size=inner if self.kind == "mlp" else None,
            rank=None if self.kind == "mlp" else inner,
            hidden_size=base.hidden_size if self.kind == "unembedding" else None,
            vocab_size=base.vocab_size,
        )


def read_bytes(base: BaseModel, head: AlignmentHead | None = None) -> int:
    """Return the bytes of weights one token needs, if each is read once.

    All of the base and of the head count but an input embedding that is not the output's too: of
    it a row is read.
    """
    read = weight_bytes(base.model, *([head] if head else []))
    inputs = base.model.get_input_embeddings().weight
    tied = inputs is base.model.get_output_embeddings().weight
    return read - (0 if tied else inputs.numel() * inputs.element_size())
