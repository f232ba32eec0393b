"""The alignment head: hidden states of several layers in, a vector over the vocabulary out.

    states of K layers, pooled to W -> concat K*W -> Linear W, ReLU, Dropout        fusion
                                    -> Linear E, ReLU -> Linear V (zero at first)   alignment

With the default sizes (K 3, W 4096, E 16384) and LLaMA's vocabulary of 32,000 the alignment
network has 591,445,248 parameters, and 641,780,992 with the fusion layer.

The letters of shapes are in CONTRIBUTING.md.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.cache_schema.errors import UsageError
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.storage import (
    find_head,
    load_weights,
    read_head_config,
    require_finite,
)
from mav.pipeline.ops.tensor_storage import pool_states


class AlignmentHead(nn.Module):
    """Token-wise: a position's vector depends on the states at that position alone.

    The last layer starts at zero, so an untrained head leaves the base exactly as it is.

    Attributes:
        config: Its sizes.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.fusion = nn.Linear(config.num_layers * config.pooled_size, config.pooled_size)
        self.expand = nn.Linear(config.pooled_size, config.expansion_size)
        self.project = nn.Linear(config.expansion_size, config.vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def features(self, states: Tensor) -> Tensor:
        """Return the input of the last layer, [..., E].

        Args:
            states: [..., K, width]; pooled here to W where the width is another.
        """
        pooled = pool_states(states, self.config.pooled_size).flatten(-2)
        fused = F.relu(self.fusion(pooled.to(self.fusion.weight.dtype)))
        return F.relu(self.expand(self.dropout(fused)))

    def forward(self, states: Tensor) -> Tensor:
        """Return the alignment vector [..., V] for states [..., K, width]."""
        vector: Tensor = self.project(self.features(states))
        return vector

    @property
    def dtype(self) -> torch.dtype:
        """Element type of its weights."""
        return self.project.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.project.weight.device

    @staticmethod
    def from_pretrained(
        path_or_hub_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> "AlignmentHead":
        """Load a head from a folder, a training output or the hub.

        Args:
            path_or_hub_id: Folder with `config.json` and `model.safetensors`, the output folder
                of `mav train` (its best head), or a hub id.
            dtype: Element type to load it in.
            device: Where to put it.

        Raises:
            HeadError: There is no head, or its files are not those of a head.
        """
        folder = find_head(path_or_hub_id)
        config, _ = read_head_config(folder)
        return load_from_folder(folder, config, dtype=dtype, device=device)[0]


def load_from_folder(
    folder: Path, config: HeadConfig, *, dtype: torch.dtype, device: str
) -> tuple[AlignmentHead, str]:
    """Return the head of a folder, in eval mode, and the SHA-256 of its weights' file.

    Args:
        folder: Its folder.
        config: Its sizes.
        dtype: Element type to load it in.
        device: Where to put it.

    Raises:
        HeadError: Its weights are missing, damaged, not finite, or those of another head.
    """
    with torch.device("meta"):
        head = AlignmentHead(config)
    digest = load_weights(head, folder, device)
    head = head.to(dtype).eval()
    require_finite(head, folder)
    return head, digest


def quantize_head(head: AlignmentHead) -> None:
    """Replace a head's weights by int8 ones for decoding, with one scale per row (torchao).

    The head is compiled when it is first called; otherwise torchao would dequantize the whole
    weights at every token. Products are computed in the base's dtype.

    Raises:
        UsageError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UsageError("`int8_head` needs torchao: pip install 'mav-align[eight-bit]'") from error
    quantize_(head, Int8WeightOnlyConfig())
    head.compile()


def is_quantized(head: AlignmentHead) -> bool:
    """Return whether a head's weights are int8."""
    return type(head.project.weight.data) is not torch.Tensor
