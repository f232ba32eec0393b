"""How large everything is, in full and in miniature, and in what type it is computed."""

from dataclasses import dataclass
from typing import Any, Final

import torch

from benchmarks.shapes import LLAMA_7B, BaseShape, HeadShape
from mav.pipeline.runtime.compute_dtype import native_dtype


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large what is timed is.

    Attributes:
        base: Sizes of the base, as its configuration names them.
        layers: Its decoder layers.
        heads: The heads on it, the published kind first.
        matmul: Rows and columns of the product that others are compared with.
        copy_bytes: Bytes of the copy that bandwidth is measured with.
        rows: Preference pairs that are extracted.
        prompt_tokens: Most tokens of a prompt; the fewest are a quarter.
        response_tokens: Most tokens of a response, likewise.
        batch_tokens: Most tokens in one forward pass.
        step: Options of `benchmarks.step`.
        gigabytes: Values of the cache that is streamed.
        block_tokens: Response tokens in one of its blocks.
        threads: Numbers of threads that read it.
        decode_tokens: Tokens of a prompt and of an answer that latency is measured with.
        serve_prompt_tokens: Most tokens of a request's prompt; the fewest are a quarter.
        serve_new_tokens: Tokens of its answer.
        requests: Requests that are decoded at once.
        rounds: Rounds of each timing, as far as time allows.
    """

    base: dict[str, Any]
    layers: int
    heads: tuple[HeadShape, ...]
    matmul: int
    copy_bytes: int
    rows: int
    prompt_tokens: int
    response_tokens: int
    batch_tokens: int
    step: tuple[str, ...]
    gigabytes: float
    block_tokens: int
    threads: tuple[int, ...]
    decode_tokens: tuple[int, int]
    serve_prompt_tokens: int
    serve_new_tokens: int
    requests: int
    rounds: int

    def base_shape(self, dtype: torch.dtype) -> BaseShape:
        """Return the base, its weights random."""
        return BaseShape(name=None, layers=self.layers, sizes=self.base, dtype=dtype)


FULL: Final = Sizes(
    base=LLAMA_7B,
    layers=32,
    heads=(
        HeadShape(pooled_size=4096, expansion_size=16384),
        HeadShape(kind="unembedding", pooled_size=4096, expansion_size=None),
        HeadShape(kind="bottleneck", pooled_size=4096, expansion_size=256),
    ),
    matmul=8192,
    copy_bytes=4 << 30,
    rows=256,
    prompt_tokens=208,
    response_tokens=176,
    batch_tokens=16384,
    step=(
        *("--pairs", "64", "--steps", "6", "--matmul-size", "8192"),
        *("--head-types", "mlp,unembedding,bottleneck", "--rank", "256"),
    ),
    gigabytes=2.0,
    block_tokens=1024,
    threads=(1, 2, 4, 8),
    decode_tokens=(64, 48),
    serve_prompt_tokens=256,
    serve_new_tokens=128,
    requests=64,
    rounds=5,
)

MINIATURE: Final = Sizes(
    base={
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    layers=4,
    heads=(
        HeadShape(pooled_size=32, expansion_size=48),
        HeadShape(kind="unembedding", pooled_size=32, expansion_size=None),
        HeadShape(kind="bottleneck", pooled_size=32, expansion_size=16),
    ),
    matmul=128,
    copy_bytes=1 << 20,
    rows=12,
    prompt_tokens=24,
    response_tokens=16,
    batch_tokens=256,
    step=(
        *("--pairs", "3", "--pair-tokens", "30", "--steps", "2", "--matmul-size", "128"),
        *("--hidden-size", "48", "--pooled-size", "48", "--expansion-size", "40"),
        *("--vocab-size", "300", "--head-types", "mlp,unembedding,bottleneck", "--rank", "16"),
    ),
    gigabytes=0.001,
    block_tokens=256,
    threads=(1, 2),
    decode_tokens=(8, 4),
    serve_prompt_tokens=16,
    serve_new_tokens=6,
    requests=6,
    rounds=2,
)


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the type a device is to compute in; the CPU, which is the reference, in float32."""
    return torch.float32 if device.type == "cpu" else native_dtype(device)
