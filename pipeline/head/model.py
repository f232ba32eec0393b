"""The alignment head: hidden states of several layers in, what is added to the base out.

    mlp          states of K layers, pooled to W -> concat K*W -> Linear W, ReLU, Dropout   fusion
                                       -> Linear E, ReLU -> Linear V (zero at first)     alignment
    unembedding  fusion as above -> [Linear r, ReLU] -> Linear H (zero at first), the shift f of the
                 base's last state, so that its logits become W_U (h + alpha f)
    bottleneck   the last of the states, pooled to W -> Linear r, ReLU -> Linear V (zero at first),
                 no biases

With the default sizes (K 3, W 4096, E 16384) and LLaMA's vocabulary of 32,000 the alignment
network of an `mlp` has 591,445,248 parameters, and 641,780,992 with the fusion layer; an
`unembedding` has 67,117,056 in all, and a `bottleneck` of rank 256 has 9,240,576.

`mlp` is the published head of Modular Alignment Vectors. `bottleneck` is that of PALC ("Preference
Alignment via Logit Calibration", ICLR 2026). `unembedding` changes what goes into the model's own
output embedding, as an intervention on the last state does (ReFT, Wu et al. 2024), and so has no
vocabulary matrix of its own; whatever it adds to the logits lies in the span of the base's.

The letters of shapes are in CONTRIBUTING.md.
"""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.cache_schema.errors import HeadError, UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.card import write_card
from mav.pipeline.head.config import HeadConfig, head_config
from mav.pipeline.head.push import push_folder
from mav.pipeline.head.saving import save_head
from mav.pipeline.head.storage import (
    CurvePoint,
    HeadOrigin,
    find_head,
    read_head_config,
)
from mav.pipeline.head.weights import load_weights, require_finite
from mav.pipeline.ops.tensor_storage import pool_states
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.runtime.compute_dtype import Dtype, resolve_dtype


class AlignmentHead(nn.Module):
    """Token-wise: what is added at a position depends on the states at that position alone.

    The last layer starts at zero, so an untrained head leaves the base exactly as it is.

    Attributes:
        config: Its kind and sizes.
        origin: What it was trained from and how; None of one that was made from sizes alone.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.origin: HeadOrigin | None = None
        layers = {
            name: nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
            for name, layer in config.layers.items()
        }
        self.fusion: nn.Linear | None = layers.get("fusion")
        self.expand: nn.Linear | None = layers.get("expand")
        self.project = layers["project"]
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def features(self, states: Tensor) -> Tensor:
        """Return the input of the last layer, [..., E].

        Args:
            states: [..., K, width]; pooled here to W where the width is another.
        """
        size, dtype = self.config.pooled_size, self.dtype
        if self.fusion is None:
            features = pool_states(states[..., -1, :], size).to(dtype)
        else:
            pooled = pool_states(states, size).flatten(-2)
            features = F.relu(self.fusion(pooled.to(dtype)))
        features = self.dropout(features)
        return features if self.expand is None else F.relu(self.expand(features))

    def pooled(self, states: Tensor) -> Tensor:
        """Return states [..., K, width] as it reads them, [..., K, W]."""
        return pool_states(states, self.config.pooled_size)

    def forward(self, states: Tensor) -> Tensor:
        """Return what the head adds, for states [..., K, width].

        Returns:
            The alignment vector, [..., V], to be added to the logits; of a head that acts on the
            state the shift f, [..., H], to be added to the last state.
        """
        added: Tensor = self.project(self.features(states))
        return added

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
        revision: str | None = None,
        dtype: Dtype = torch.float32,
        device: str = "cpu",
    ) -> "AlignmentHead":
        """Load a head from a folder, a training output or the hub.

        Args:
            path_or_hub_id: Folder with `config.json` and `model.safetensors`, the output folder
                of `mav train` (its best head), or a hub id.
            revision: Branch, tag or commit of a hub repository.
            dtype: Element type to load it in: a name such as `bfloat16`, torch's type, or `auto`.
            device: Where to put it.

        Raises:
            HeadError: There is no head, or its files are not those of a head.
        """
        resolved = resolve_dtype(dtype, device)
        folder = find_head(path_or_hub_id, revision)
        config, origin = read_head_config(folder)
        head = load_from_folder(folder, config, dtype=resolved, device=device)[0]
        head.origin = origin
        return head

    @staticmethod
    def for_cache(
        cache: str | Path | CacheReader,
        *,
        head_type: HeadKind = "mlp",
        expansion_size: int | None = None,
        rank: int | None = None,
        dropout: float | None = None,
    ) -> "AlignmentHead":
        """Return a new head for a cache, which changes nothing until it is trained.

        It says what it was made for, so it can be saved and decoded with.

        Args:
            cache: The cache, or where it is.
            head_type: `mlp`, `unembedding` or `bottleneck`.
            expansion_size: Width of the widest layer of an `mlp`; by the base's size if None.
            rank: Width of the narrow layer of the other kinds.
            dropout: Dropout after the first layer; the kind's own if None.

        Raises:
            UsageError: A size is given that this kind has not.
            CacheError: There is no complete cache.
        """
        reader = cache if isinstance(cache, CacheReader) else CacheReader(cache)
        manifest = reader.manifest
        try:
            config = head_config(
                manifest.base,
                head_type,
                num_layers=len(manifest.states.layers),
                pooled_size=manifest.states.pooled_size,
                expansion_size=expansion_size,
                rank=rank,
                dropout=dropout,
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        head = AlignmentHead(config)
        head.origin = HeadOrigin(
            manifest=manifest, objective="one's own", beta=0.0, held_out_fraction=0.0, steps=0
        )
        return head

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the head with its origin, and a model card, so that `from_pretrained` reads it.

        Args:
            folder: Where to; made if it does not exist. A README.md that is there stays.

        Raises:
            HeadError: It does not say what it was trained from.
            OSError: It cannot be written; a head that was there stays.
        """
        if self.origin is None:
            raise HeadError(
                "This head does not say what it was trained from, which a head in a folder must. "
                "Make it by `AlignmentHead.for_cache`, or set its `origin`."
            )
        save_head(self, self.origin, Path(folder))
        write_card(Path(folder), self.config, self.origin, replace=False)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload an alignment head",
        curve: Sequence[CurvePoint] = (),
    ) -> str:
        """Send the head to the hub with a model card that says what it is and how to use it.

        Args:
            repository: Its id there; made if it does not exist.
            private: Whether a new repository is private; what its owner has set if None.
            revision: Branch to send it to, the main one if None.
            commit_message: Message of the commit.
            curve: What was measured of it by alpha, for the card; that of its training if empty.

        Returns:
            The address of the commit.

        Raises:
            HeadError: It does not say what it was trained from, or the hub does not take it.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(
                Path(folder),
                repository,
                private=private,
                revision=revision,
                commit_message=commit_message,
                curve=curve,
            )

    def sharing_weights(self) -> "AlignmentHead":
        """Return a head in eval mode with the very weights of this one, which stays as it is."""
        kept = {id(weight): weight for weight in self.parameters()}
        return copy.deepcopy(self, {**kept, id(self.origin): self.origin}).eval()


def load_from_folder(
    folder: Path, config: HeadConfig, *, dtype: torch.dtype, device: str
) -> tuple[AlignmentHead, str]:
    """Return the head of a folder, in eval mode, and the SHA-256 of its weights' file.

    Args:
        folder: Its folder.
        config: Its kind and sizes.
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
