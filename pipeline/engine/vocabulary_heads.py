"""Heads in an engine: what they add to the logits of some rows of a step.

Fusion and inner layers are MAV's own. The last layer of a head that acts on the logits is vLLM's
layer for output embeddings, so that it is split over tensor-parallel ranks, and packed on a CPU, as
the base's is. That of a head which acts on the state is MAV's, and what it gives goes through the
base's own output embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from mav.cache_schema.errors import HeadError
from mav.pipeline.engine.steering_config import SteeringConfig
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import StoredHead, load_head
from mav.pipeline.head.storage import read_head_config
from mav.pipeline.runtime.known_places import shown_place


class VocabularyHead(nn.Module):
    """One head.

    Attributes:
        config: Its kind and sizes.
        inner: The head without its last layer, where that is vLLM's.
        project: Its last layer, vLLM's; None of a head that acts on the state.
    """

    def __init__(self, config: HeadConfig, dtype: torch.dtype, prefix: str) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.inner = AlignmentHead(config).to(dtype).eval().requires_grad_(False)
        self.project: Any = None
        if not config.acts_on_state:
            last = config.layers["project"]
            self.project = ParallelLMHead(
                last.outputs, last.inputs, bias=last.bias, params_dtype=dtype, prefix=prefix
            )
            self.to_vocabulary = LogitsProcessor(last.outputs)
            self.inner.project = _Passing(dtype)  # type: ignore[assignment]
        self.inner.to_empty(device=str(torch.get_default_device()))

    def take(self, stored: StoredHead) -> None:
        """Take the weights of a head that was read from its files."""
        weights = stored.head.state_dict()
        if self.project is not None:
            self.project.weight_loader(self.project.weight, weights.pop("project.weight"))
            if "project.bias" in weights:
                self.project.weight_loader(self.project.bias, weights.pop("project.bias"))
        self.inner.load_state_dict(weights)

    def vector(self, states: Tensor) -> Tensor | None:
        """Return what it adds at alpha 1, float32 [S, V], or of the state [S, H].

        None on ranks that do not sample, where vLLM gathers logits on one rank alone.

        Args:
            states: [S, K, H].
        """
        features: Tensor = self.inner(states)
        if self.project is None:
            return features.float()
        added = self.to_vocabulary(self.project, features, self.project.bias)
        return None if added is None else added.float()


class _Passing(nn.Module):
    """Stands in a head for the last layer, which vLLM computes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        # Where `AlignmentHead` looks for its element type and device.
        self.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return features


class VocabularyHeads(nn.Module):
    """The heads of an engine.

    Attributes:
        config: What the engine was told of them.
        parts: The heads.
        reads: Layers of the base whose states they read, ascending.
    """

    def __init__(self, config: SteeringConfig, dtype: torch.dtype, prefix: str) -> None:
        """Make them, without their weights.

        Raises:
            HeadError: A head is not where the engine was told.
        """
        super().__init__()
        self.config = config
        self.sizes = [read_head_config(Path(head.folder))[0] for head in config.heads]
        self.parts = nn.ModuleList(
            VocabularyHead(sizes, dtype, f"{prefix}.parts.{number}.project")
            for number, sizes in enumerate(self.sizes)
        )
        # A bottleneck reads the last of its states alone.
        narrow = all(sizes.kind == "bottleneck" for sizes in self.sizes)
        self.reads = config.layers[-1:] if narrow else config.layers

    def load(self) -> set[str]:
        """Load their weights; return the names of all parameters.

        Raises:
            HeadError: One is damaged, or was changed since the engine's arguments were made.
        """
        for placed, part in zip(self.config.heads, self.parts, strict=True):
            stored = load_head(placed.folder)
            if stored.digest != placed.digest:
                raise HeadError(
                    f"{shown_place(placed.folder)}: its weights have the SHA-256 "
                    f"{stored.digest[:12]}…, but the engine was told {placed.digest[:12]}…. The "
                    f"head was trained again or replaced: make the engine's arguments again."
                )
            cast("VocabularyHead", part).take(stored)
        return {name for name, _ in self.named_parameters()}

    @property
    def on_state(self) -> tuple[int, ...]:
        """Numbers of the heads that act on the state."""
        return tuple(n for n, sizes in enumerate(self.sizes) if sizes.acts_on_state)

    @property
    def on_logits(self) -> tuple[int, ...]:
        """Numbers of the heads that act on the logits."""
        return tuple(n for n, sizes in enumerate(self.sizes) if not sizes.acts_on_state)

    def total(self, numbers: Sequence[int], states: Tensor, alphas: Tensor) -> Tensor | None:
        """Return the sum of alpha times what some of the heads add, float32 [S, V] or [S, H].

        None of no heads, and on ranks that do not sample.

        Args:
            numbers: Of the heads.
            states: What they read, [S, K, H].
            alphas: Float32 [S, heads]; a head whose alphas are all 0 is left out.
        """
        found: Tensor | None = None
        # On the host, where they come from: every rank leaves out the same heads.
        used = alphas.any(0).tolist()
        alphas = alphas.to(states.device)
        for number in numbers:
            if not used[number]:
                continue
            vector = cast("VocabularyHead", self.parts[number]).vector(states)
            if vector is not None:
                part = alphas[:, number, None] * vector
                found = part if found is None else found + part
        return found
