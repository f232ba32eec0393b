"""Extraction beside the bare model and two usual ways: `python -m benchmarks.extract --json`.

All ways run the same pairs through the same model in turn, each round beginning with another, after
a round of warm-up on a few pairs; ratios are medians over rounds of pairs per second.

    extract        `mav extract`: states of three layers and the labels, to a cache on disk; the
                   time of its forward passes and writing, to the last byte flushed
    bare           the same packed forward passes, with nothing taken and nothing written
    padded         the common way: each answer behind its prompt, batches padded to their longest,
                   `output_hidden_states=True`, one `torch.save` an answer with its states
    shared_cache   each prompt once, then both answers on its key-value cache, by transformers;
                   nothing taken, nothing written

`extract_over_bare` and `extract_over_padded` are what their names say. The common way computes its
logits, as it calls the whole model, but does not store them, which a head could not do without.

`bytes_per_token` are those on disk for a response token: of the cache, per-token arrays alone; of
the files of the common way; and what bfloat16 logits would add to these. `bytes_at_7b_over_dense`
is for LLaMA-7B's shapes (vocabulary 32,000, three layers of 4,096), over states and dense logits:
exact without compression; with it, this base's states are taken to compress as any do.

`flops_over_matmul` is the rate of the forward passes' floating-point operations, two for each token
and weight of the decoder layers and those of attention, over that of a 4096 x 4096 x 4096 product.
"""

import mav.pipeline  # noqa: F401 (sets what torch reads from the environment)
from mav.pipeline.runtime.choices import DtypeName

# isort: split

import argparse
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.matmul import best_matmul_rate
from benchmarks.synthetic import log_to_stderr, machine, parse_for_folder, run_in_folder, say, timed
from mav.cache_schema.arrays import bytes_per_token, layouts, shard_key
from mav.cache_schema.encoding.dtypes import itemsize
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.size_estimate import compressed_share
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.base.layer_selection import select_layers
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.demo.run import installed_base
from mav.pipeline.extraction.batch_size import CPU_TOKENS
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.forward import run_decoder
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.extraction.packing import batches, pack, separate_batch
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.runtime.compute_dtype import (
    pick_dtype,
    plain_name,
)
from mav.pipeline.runtime.devices import pick_device

_MATMUL: Final = 4096
_DENSE_VALUES_7B: Final = 3 * 4096 + 32000


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every way is given.

    Attributes:
        base: The base.
        pairs: The pairs, in stored order.
        options: Of the extraction.
        work: Folder for what is written.
    """

    base: BaseModel
    pairs: TokenizedPairs
    options: ExtractOptions
    work: Path

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are taken."""
        return select_layers("auto", 3, self.base.num_hidden_layers)

    def extract(self) -> float:
        """Extract to a new cache; return the seconds of its forward passes and writing."""
        shutil.rmtree(self.options.output, ignore_errors=True)
        return extract(self.options, base=self.base).seconds

    @torch.inference_mode()
    def bare(self) -> float:
        """Run the packed forward passes alone."""
        plan = CacheReader(self.options.output).plan

        def run() -> None:
            for block in range(plan.blocks):
                for some in batches(
                    plan.pairs_of(block),
                    self.pairs.shared_length,
                    self.options.batch_tokens or CPU_TOKENS,
                    "packed",
                ):
                    batch = pack(self.pairs, some, "packed", self.base.dtype)
                    run_decoder(self.base, batch.to(self.base.device))

        return timed(self.base.device, run)

    @torch.inference_mode()
    def padded(self) -> float:
        """Run each answer apart and save its states to a file of its own."""
        folder = self.work / "padded"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

        def run() -> None:
            for number, some in enumerate(_of_pairs(len(self.pairs), self._pairs_at_once)):
                batch = separate_batch(self.pairs, some)
                inputs = {name: x.to(self.base.device) for name, x in batch.inputs.items()}
                output = self.base.model(**inputs, output_hidden_states=True, use_cache=False)
                chosen = torch.stack([output.hidden_states[i] for i in self.layers], dim=-2)
                states_NKH = chosen.flatten(0, 1)[batch.predict.to(chosen.device)].cpu()
                ends = self.pairs.response_length[some.start : some.stop].reshape(-1).tolist()
                for answer, states in enumerate(torch.split(states_NKH, ends)):
                    # A clone, as what is saved of a view is all it is a view of.
                    torch.save(states.clone(), folder / f"{number}-{answer}.pt")

        return timed(self.base.device, run)

    @torch.inference_mode()
    def shared_cache(self) -> float:
        """Run each prompt once, then both of its answers on the cache of keys and values."""

        def run() -> None:
            for some in _of_pairs(len(self.pairs), self._pairs_at_once):
                self._on_shared_cache(some)

        return timed(self.base.device, run)

    @property
    def _pairs_at_once(self) -> int:
        """Pairs whose padded answers are about as many tokens as a packed batch."""
        longest = int(self.pairs.shared_length.max())
        return max(1, (self.options.batch_tokens or CPU_TOKENS) // longest)

    def _on_shared_cache(self, some: range) -> None:
        parts = [self.pairs.parts(pair) for pair in some]
        prompts = [prompt for prompt, _, _ in parts]
        answers = [answer[:-1] for _, *both in parts for answer in both]
        width, longest = max(map(len, prompts)), max(1, *map(len, answers))
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros((2 * len(prompts), width + longest), np.int64)
        after = np.zeros((len(answers), longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[2 * row : 2 * row + 2, width - len(prompt) : width] = 1
        for row, answer in enumerate(answers):
            after[row, : len(answer)] = answer
            mask[row, width : width + len(answer)] = 1
        device = self.base.device
        mask_BS = torch.from_numpy(mask).to(device)
        positions = (mask_BS.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.base.config)
        self.base.decoder(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=mask_BS[::2, :width],
            position_ids=positions[::2, :width],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_repeat_interleave(2)
        self.base.decoder(
            input_ids=torch.from_numpy(after).to(device),
            attention_mask=mask_BS,
            position_ids=positions[:, width:],
            past_key_values=cache,
            use_cache=True,
        )

    def cache_bytes(self) -> int:
        """Return bytes on disk of the cache's per-token arrays."""
        reader = CacheReader(self.options.output)
        sizes = open_object_store(self.options.output).sizes()
        return sum(
            sizes[shard_key(layout, block)]
            for layout in layouts(reader.manifest).values()
            if layout.spec.kind == "block"
            for block in range(reader.plan.blocks)
        )

    def written_bytes(self) -> dict[str, float]:
        """Return bytes per response token on disk, of the cache and of the common way."""
        reader = CacheReader(self.options.output)
        files = sum(path.stat().st_size for path in (self.work / "padded").iterdir())
        tokens = reader.plan.tokens
        return {
            "extract": self.cache_bytes() / tokens,
            "padded": files / tokens,
            "dense_logits": 2.0 * self.base.vocab_size,
        }

    def sizes_at_7b(self) -> dict[str, float]:
        """Return the size of a cache of LLaMA-7B over one with dense logits, by compression."""
        reader = CacheReader(self.options.output)
        dense = _DENSE_VALUES_7B * itemsize(reader.manifest.states.dtype)
        plain = bytes_per_token(_like_7b(reader.manifest)) / dense
        rows = {"hidden_states": reader.read_block(0).rows["hidden_states"]}
        found = {"none": plain}
        for compression in ("zstd", "blosc"):
            storage = dataclasses.replace(reader.manifest.storage, compression=compression)
            manifest = dataclasses.replace(reader.manifest, storage=storage)
            share = compressed_share(manifest, rows)["hidden_states"]
            found[compression] = share * plain
        return found

    def flops(self) -> float:
        """Return the floating-point operations of the packed forward passes over all pairs."""
        weights = sum(
            parameter.numel()
            for name, parameter in self.base.decoder.named_parameters()
            if parameter.dim() == 2 and "embed" not in name
        )
        attention = 0
        for prompt, chosen, rejected in map(self.pairs.parts, range(len(self.pairs))):
            p, c, r = len(prompt), len(chosen) - 1, len(rejected) - 1
            # Scores and sums, two products each of two operations, of half of the square.
            attention += (p + c) * (p + c) * 2 + r * (2 * p + r) * 2
        width = self.base.config.num_attention_heads * self.base.config.head_dim
        tokens = int(self.pairs.shared_length.sum())
        return 2.0 * weights * tokens + float(attention * width * self.base.num_hidden_layers)


def _like_7b(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest,
        base=dataclasses.replace(
            manifest.base, hidden_size=4096, num_hidden_layers=32, vocab_size=32000
        ),
        states=dataclasses.replace(
            manifest.states, layers=(1, 16, 32), pooled_size=4096, stored_width=4096
        ),
    )


def _of_pairs(count: int, at_once: int) -> list[range]:
    return [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure; return what is printed."""
    device = pick_device(asked.device)
    base = load_base(asked.base_model, dtype=pick_dtype(asked.dtype, device), device=str(device))
    task = make_task(asked, base, work, asked.limit)
    warm = make_task(asked, base, work, min(8, asked.limit))
    ways: dict[str, Callable[[Task], float]] = {
        "extract": Task.extract,
        "bare": Task.bare,
        "padded": Task.padded,
        "shared_cache": Task.shared_cache,
    }
    for name, way in ways.items():
        say(f"warm-up: {name}")
        way(warm)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    task.extract()  # leaves the plan that `bare` goes by
    for number in range(asked.repeats):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(ways[name](task))
        rates = ", ".join(
            f"{name} {len(task.pairs) / taken[-1]:.1f}" for name, taken in seconds.items()
        )
        say(f"round {number + 1} of {asked.repeats}, pairs/s: {rates}")

    def over(name: str, other: str) -> float:
        pairs = zip(seconds[name], seconds[other], strict=True)
        return median(theirs / own for own, theirs in pairs)

    pairs = len(task.pairs)
    tokens = task.written_bytes()
    at_7b = task.sizes_at_7b()
    return {
        "extract_over_bare": over("extract", "bare"),
        "extract_over_padded": over("extract", "padded"),
        "extract_over_shared_cache": over("extract", "shared_cache"),
        "bytes_per_token": tokens,
        "bytes_at_7b_over_dense": at_7b,
        "flops_over_matmul": task.flops()
        / median(seconds["bare"])
        / best_matmul_rate(_MATMUL, device, base.dtype),
        "pairs_per_second": {name: pairs / median(taken) for name, taken in seconds.items()},
        "computed_in": plain_name(base.dtype),
        "pairs": pairs,
        "tokens": {
            "packed": int(task.pairs.shared_length.sum()),
            "response": int(task.pairs.response_length.sum()),
        },
        "seconds": seconds,
        "settings": {name: value for name, value in vars(asked).items() if name != "json"},
        **machine(device),
    }


def make_task(asked: argparse.Namespace, base: BaseModel, work: Path, limit: int) -> Task:
    """Read and tokenize pairs for a base.

    Args:
        asked: The options.
        base: The base.
        work: Folder for what is written.
        limit: Rows to read.
    """
    data = DataSource(id=asked.dataset, limit=limit)
    pairs = tokenize_pairs(
        islice(read_pairs(data, ReadCounts()), limit), base.tokenizer, asked.max_length
    )
    options = ExtractOptions(
        base_model=asked.base_model,
        data=data,
        output=work / "cache",
        pooled_size=base.hidden_size,
        max_length=asked.max_length,
        batch_tokens=asked.batch_tokens,
        device=str(base.device),
    )
    return Task(base=base, pairs=pairs, options=options, work=work)


def table(found: dict[str, Any]) -> str:
    """Lay the figures out."""
    lines = [
        f"{'pairs/s':<16}{rate:>10.1f}  {name.replace('_', ' ')}"
        for name, rate in found["pairs_per_second"].items()
    ]
    lines += [
        f"extract over bare          {found['extract_over_bare']:>8.2f}",
        f"extract over padded        {found['extract_over_padded']:>8.2f}",
        f"extract over shared cache  {found['extract_over_shared_cache']:>8.2f}",
        f"bare, of the product's rate{found['flops_over_matmul']:>8.2f}",
        *(
            f"{name.replace('_', ' '):<16}{size:>12,.0f} bytes per response token"
            for name, size in found["bytes_per_token"].items()
        ),
        *(
            f"at 7B, {name:<9}{share:>12.3f} of states and dense logits"
            for name, share in found["bytes_at_7b_over_dense"].items()
        ),
        f"{found['computed_in']}, {found['device_name']}",
    ]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-model", default=None, help="default: the installed SmolLM2-135M")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--limit", type=int, default=128, help="rows read")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--dtype", choices=get_args(DtypeName), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    asked = parse_for_folder(parser, argv)
    if asked.base_model is None:
        asked.base_model = str(installed_base())
    return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object or a table."""
    asked = parse(argv)
    run_in_folder(asked, measure, table)


if __name__ == "__main__":
    log_to_stderr()
    main()
