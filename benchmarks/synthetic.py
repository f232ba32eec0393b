"""What benchmarks without a base model share: caches of random states, a trainer, the machine.

A synthetic cache has the shapes of a real one: three layers of bfloat16 states, factored logits,
answers of log-normal length. All blocks hold the same random rows, so that gigabytes are written
quickly; reading is none the quicker for it, each block being read and checked by itself.
"""

import argparse
import json
import logging
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from mav.cache_schema.choices import Compression, StatesStorage
from mav.cache_schema.errors import MAVError
from mav.cache_schema.manifest import (
    FORMAT_VERSION,
    BaseModelRecord,
    DataRecord,
    LogitsRecord,
    Manifest,
    PlanRecord,
    SourceRecord,
    StatesRecord,
    StorageRecord,
    TextRecord,
)
from mav.cache_schema.plan import BlockPlan, plan_blocks
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.storage.lock import run_lock
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from mav.pipeline.extraction.encode import quantized_rows
from mav.pipeline.head.config import head_config
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.tensor_storage import to_stored
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.runtime.compute_dtype import native_dtype, plain_name
from mav.pipeline.training.defaults import settled
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.trainer import Trainer

LAYERS: Final = (1, 16, 32)
_LONGEST_ANSWER: Final = 512
_SPREAD: Final = 0.5
"""Of the logarithm of lengths: half of all answers have 0.63 to 1.24 times the mean."""
_CPU: Final = torch.device("cpu")


def log_to_stderr() -> None:
    """Show on standard error what the pipeline logs, as its commands do."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mav").setLevel(logging.INFO)


def say(line: str) -> None:
    """Print progress on standard error."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What a synthetic cache is like.

    Attributes:
        hidden_size: Width of the base.
        pooled_size: Width each layer is pooled to.
        vocab_size: Rows of the unembedding.
        block_tokens: Most response tokens of a block.
        compression: How chunks are compressed.
        storage: How states are stored.
    """

    hidden_size: int
    pooled_size: int
    vocab_size: int
    block_tokens: int
    compression: Compression = "none"
    storage: StatesStorage = "computed"

    @property
    def token_bytes(self) -> int:
        """Bytes of a response token's values, as training gets them."""
        stored = min(self.hidden_size, self.pooled_size)
        final = 0 if stored == self.hidden_size else self.hidden_size
        return 2 * (len(LAYERS) * stored + final) + 4


def answer_lengths(pairs: int, mean: float, block_tokens: int) -> NDArray[np.int32]:
    """Draw log-normal lengths [pairs, 2] of this mean; no pair is longer than a block."""
    generator = np.random.default_rng(0)
    drawn = generator.lognormal(math.log(mean) - _SPREAD**2 / 2, _SPREAD, (pairs, 2))
    return drawn.round().clip(1, min(_LONGEST_ANSWER, block_tokens // 2)).astype(np.int32)


def write_cache(root: Path, lengths: NDArray[np.int32], shape: CacheShape) -> CacheReader:
    """Write a cache of random states.

    Args:
        root: Its folder.
        lengths: Tokens of chosen and rejected answers, [pairs, 2].
        shape: What it is to be like.
    """
    plan = plan_blocks(lengths, shape.block_tokens)
    manifest = _manifest(plan, shape)
    torch.manual_seed(0)
    weight = _normal(shape.vocab_size, shape.hidden_size).div_(math.sqrt(shape.hidden_size))
    rows = _random_rows(manifest, max(map(plan.used_rows, range(plan.blocks))))
    columns: dict[str, NDArray[Any]] = {
        "pair_id": np.arange(plan.pairs, dtype=np.uint64),
        "prompt_id": np.random.default_rng(1).integers(2**64, size=plan.pairs, dtype=np.uint64),
        "source": np.zeros(plan.pairs, dtype=np.uint16),
        "source_row": np.arange(plan.pairs, dtype=np.int64),
    }
    objects = open_object_store(root)
    with run_lock(objects) as run:
        writer = CacheWriter.create(
            objects, run, manifest, plan, columns, {"weight": to_stored(weight)}
        )
        for block in range(plan.blocks):
            used = {path: values[: plan.used_rows(block)] for path, values in rows.items()}
            if shape.storage != "computed":
                used = quantized_rows(used, manifest, _CPU)
            writer.write_block(block, len(plan.pairs_of(block)), used)
        writer.complete()
    return CacheReader(root)


def _random_rows(manifest: Manifest, tokens: int) -> dict[str, NDArray[Any]]:
    """Return the rows of a block of so many tokens."""
    states = _normal(tokens, len(LAYERS), manifest.states.stored_width)
    labels = torch.randint(manifest.base.vocab_size, (tokens,), dtype=torch.int32).numpy()
    rows = {"hidden_states": to_stored(states), "labels": labels}
    if manifest.final_state_layer is None:
        rows["final_hidden_state"] = to_stored(_normal(tokens, manifest.base.hidden_size))
    return rows


def _normal(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_()


def _manifest(plan: BlockPlan, shape: CacheShape) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by={"benchmarks": "synthetic"},
        base=BaseModelRecord(
            id="synthetic",
            revision=None,
            gguf_file=None,
            quantization=None,
            architecture="none",
            weights_digest="",
            config_digest="",
            tokenizer_digest="",
            num_hidden_layers=LAYERS[-1],
            hidden_size=shape.hidden_size,
            vocab_size=shape.vocab_size,
            eos_token_id=0,
        ),
        states=StatesRecord(
            layer_selection="explicit",
            layers=LAYERS,
            pooled_size=shape.pooled_size,
            stored_width=min(shape.hidden_size, shape.pooled_size),
            dtype="bfloat16",
        ),
        logits=LogitsRecord(
            encoding="factored", scale=1.0, softcap=None, has_bias=False, top_k=None
        ),
        text=TextRecord(
            prompt_template="{prompt}", max_length=0, truncation="keep_response_and_prompt_end"
        ),
        data=DataRecord(
            sources=(
                SourceRecord(
                    id="synthetic",
                    data_dir=None,
                    split="none",
                    limit=None,
                    weight=None,
                    held_out=False,
                    rows=plan.pairs,
                    pairs=plan.pairs,
                    fingerprint="",
                    dropped={},
                ),
            ),
            fingerprint="",
            prompts_truncated=0,
            responses_cut=0,
        ),
        plan=PlanRecord(
            block_tokens=plan.block_tokens, blocks=plan.blocks, tokens=plan.tokens, digest=""
        ),
        storage=StorageRecord(compression=shape.compression, states=shape.storage),
        checks={},
        complete=False,
    )


def add_head_options(parser: argparse.ArgumentParser, *, expansion_size: int) -> None:
    """Add the options that say how large the head is and what base it is for."""
    parser.add_argument("--hidden-size", type=int, default=4096, help="width of the base")
    parser.add_argument("--pooled-size", type=int, default=4096, help="of the head's input")
    parser.add_argument("--expansion-size", type=int, default=expansion_size)
    parser.add_argument("--vocab-size", type=int, default=32000)


def require_positive(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse numbers that are not above 0."""
    for name, value in vars(asked).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            parser.error(f"--{name.replace('_', '-')}: got {value}, expected more than 0")


def new_head(
    reader: CacheReader,
    expansion_size: int | None,
    kind: HeadKind = "mlp",
    rank: int | None = None,
) -> AlignmentHead:
    """Return a new head for a cache."""
    torch.manual_seed(0)
    states = reader.manifest.states
    return AlignmentHead(
        head_config(
            reader.manifest.base,
            kind,
            num_layers=len(states.layers),
            pooled_size=states.pooled_size,
            expansion_size=expansion_size,
            rank=rank,
        )
    )


def new_trainer(
    reader: CacheReader, accelerator: Accelerator, head: AlignmentHead, lambda_kl: float = 0.0
) -> Trainer:
    """Return a trainer as `mav train` makes it."""
    options = TrainOptions(
        cache=reader.location,
        output_dir=Path(reader.location),  # a step writes nothing
        head_type=head.config.kind,
        expansion_size=head.config.expansion_size,
        rank=head.config.rank,
        lambda_kl=lambda_kl,
    )
    options = settled(options, reader.manifest, accelerator.device)
    return Trainer(options, accelerator, head)


def parse_for_folder(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Read the options of a benchmark that `run_in_folder` runs, which adds those it needs."""
    parser.add_argument("--work", type=Path, default=None, help="where to put a temporary folder")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    require_positive(parser, asked)
    return asked


def run_in_folder(
    asked: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measure in a temporary folder under `--work`, and print one JSON object or a table."""
    try:
        with tempfile.TemporaryDirectory(dir=asked.work) as work:
            found = measure(asked, Path(work))
    except MAVError as error:
        sys.exit(f"Error: {error}")
    print(json.dumps(found, indent=1) if asked.json else table(found))


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds that work takes, with all of it done on the device."""
    wait(device)
    started = perf_counter()
    work()
    wait(device)
    return perf_counter() - started


def wait(device: torch.device) -> None:
    """Wait until a device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what figures were measured on and with."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "native_dtype": plain_name(native_dtype(device)),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "thp_mem_alloc_enable": os.environ.get("THP_MEM_ALLOC_ENABLE"),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a card or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    if device.type == "cpu" and described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
