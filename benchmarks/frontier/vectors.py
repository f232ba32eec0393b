r"""Steering vectors: the difference of mean states, and one that is learned.

Both are added to the state of one layer at every position, prompt included.

- Mean difference (contrastive activation addition; Rimsky et al. 2024, "Steering Llama 2 via
  Contrastive Activation Addition"): the mean state at the tokens of chosen answers less that at the
  tokens of rejected ones. Its length says little where answers differ little, so it is given that
  of the median state at this layer, and a multiplier of 0.1 is a tenth of a state.
- BiPO (Cao et al. 2024, "Personalized Steering of Large Language Models: Versatile Steering Vectors
  Through Bi-directional Preference Optimization"): a vector v, zero at first, learned by

      loss = -log sigmoid(d beta [(log pi_dv(w) - log pi(w)) - (log pi_dv(l) - log pi(l))])

  with d drawn anew from {-1, 1} for every step, so that v works in both directions. Beta 0.1,
  AdamW, weight decay 0.05 and half a cosine to zero are the authors'. A multiplier of 1 is the
  vector as it was learned.
"""

import random
from pathlib import Path
from time import process_time
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.baselines.genarm import answer_logprobs, cosine_rate
from benchmarks.baselines.lora import LoraSettings
from benchmarks.frontier.policies import adding
from benchmarks.frontier.stages import World
from mav.cache_schema.reader import CacheReader
from mav.pipeline.loader.batch import Batch, collate
from mav.pipeline.runtime.progress import progress_bar

_BIPO: Final = LoraSettings(
    rank=0,
    alpha=0,
    dropout=0.0,
    targets=(),
    beta=0.1,
    learning_rate=0.0,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.05,
)


def load_vector(folder: Path) -> Tensor:
    """Return a stored vector, float32 [hidden]."""
    vector: Tensor = load_file(str(folder / "vector.safetensors"))["vector"]
    return vector


def _save(vector: Tensor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"vector": vector.detach().contiguous()}, str(folder / "vector.safetensors"))


def difference_of_means(batch: Batch, place: int) -> Tensor:
    """Return the mean-difference vector of pairs at the length of a median state, [hidden].

    Args:
        batch: The pairs.
        place: Which of the stored layers.
    """
    states = batch.states[:, place].float()
    answer = torch.repeat_interleave(torch.arange(2 * batch.pairs), batch.offsets.diff())
    is_chosen = answer % 2 == 0
    vector = states[is_chosen].mean(0) - states[~is_chosen].mean(0)
    length: Tensor = states.norm(dim=-1).median() / vector.norm()
    return length * vector


def all_pairs(cache: Path) -> Batch:
    """Return all pairs of a cache as one batch, in its order; for caches of some hundred pairs."""
    reader = CacheReader(cache)
    blocks = [reader.read_block(number) for number in range(reader.plan.blocks)]
    members = [(block, index) for block in blocks for index in range(len(block.pairs))]
    return collate(members, reader.manifest, len(members))


def train_mean_difference(world: World, _: float | None, __: int, folder: Path) -> dict[str, float]:
    """Write the vector to a folder; return what it took."""
    batch = all_pairs(world.cache("training"))
    started = process_time()
    vector = difference_of_means(batch, world.middle_layer("training")[1])
    _save(vector, folder)
    return {"cpu_seconds": process_time() - started, "parameters": vector.numel()}


def train_bipo(world: World, rate: float | None, seed: int, folder: Path) -> dict[str, float]:
    """Learn a vector and write it to a folder; return what it took."""
    assert rate is not None
    base, split = world.base, world.split("training")
    layer, _ = world.middle_layer("training")
    chosen_reference, rejected_reference = (part.float() for part in world.reference())
    vector = torch.nn.Parameter(torch.zeros(base.hidden_size))
    optimizer = torch.optim.AdamW([vector], lr=rate, weight_decay=_BIPO.weight_decay)
    draws = random.Random(seed)  # noqa: S311
    size, epochs = _BIPO.batch_pairs, world.sizes.epochs
    steps = -(-len(split.training) // size) * epochs
    order = [
        pair for _ in range(epochs) for pair in draws.sample(split.training, len(split.training))
    ]
    started = process_time()
    unembedding = base.unembedding()
    settings = LoraSettings(**{**vars(_BIPO), "learning_rate": rate})
    with progress_bar(len(order), "BiPO", "pair") as bar:
        for step in range(steps):
            some = order[step * size : (step + 1) * size]
            if not some:
                break
            direction = draws.choice((-1.0, 1.0))
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(step, steps, settings)
            for at in range(0, len(some), _BIPO.micro_pairs):
                micro = some[at : at + _BIPO.micro_pairs]
                with adding(base, layer, direction * vector):
                    chosen, rejected = answer_logprobs(
                        base, unembedding, split.pairs, micro, _BIPO.multiple
                    )
                margin = (chosen - chosen_reference[micro]) - (rejected - rejected_reference[micro])
                loss = -F.logsigmoid(direction * _BIPO.beta * margin).sum() / len(some)
                loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([vector], _BIPO.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(len(some))
            bar.set_postfix(loss=f"{float(loss.detach()) * len(some) / len(micro):.4f}")
    _save(vector, folder)
    return {"cpu_seconds": process_time() - started, "parameters": vector.numel()}
