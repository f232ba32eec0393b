"""One tile of tokens x vocabulary: the aligned logits, and sums over its part of the vocabulary.

Letters of shapes are in CONTRIBUTING.md; the features x are the E inputs of the last layer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.pipeline.ops.base_logits import BaseLogits, capped
from mav.pipeline.ops.tiling import Tiling


@dataclass(frozen=True)
class Tile:
    """W x_t as the product came, c(z_t + a_t), both [C, D], and the tile's part of n_t, [C]."""

    product: Tensor
    logits: Tensor
    squared_norm: Tensor


@dataclass(frozen=True)
class TileWork:
    """What tiles are computed from: x, W (in the products' type), b, z, c, and the sums' type."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    base: BaseLogits
    softcap: float | None
    acc_dtype: torch.dtype

    def compute(self, rows: slice, columns: slice, base_CD: Tensor | None = None) -> Tile:
        """Compute a tile.

        Args:
            rows: Its tokens.
            columns: Its part of the vocabulary.
            base_CD: The base's logits for it, where they are known.
        """
        if base_CD is None:
            base_CD = self.base.chunk(rows.start, rows.stop, columns)
        product = F.linear(self.features[rows], self.weight[columns])
        vector = self.vector(product, columns)
        squared_norm = torch.linalg.vector_norm(vector, dim=-1).square_()
        logits = capped(vector.add_(base_CD), self.softcap)
        return Tile(product, logits, squared_norm)

    def vector(self, product: Tensor, columns: slice) -> Tensor:
        """Return a_t [C, D]."""
        vector = product.to(self.acc_dtype, copy=True)
        return vector if self.bias is None else vector.add_(self.bias[columns])

    def moved(
        self,
        tile: Tile,
        vector: Tensor,
        rows: slice,
        columns: slice,
        base_CD: Tensor | None = None,
    ) -> Tensor:
        """Return by how much a tile's logits differ from the base's, c(z_t + a_t) - c(z_t), [C, D].

        Args:
            tile: The tile.
            vector: a_t, which is returned as it is where there is no cap.
            rows: Its tokens.
            columns: Its part of the vocabulary.
            base_CD: c(z_t) for it, where it is known.
        """
        if self.softcap is None:
            # The vector itself: the difference would have only the digits that reach the logits'.
            return vector
        if base_CD is None:
            base_CD = capped(self.base.chunk(rows.start, rows.stop, columns), self.softcap)
        return tile.logits - base_CD

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return the derivative of c where it gave these logits, or None where it is 1."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()


class LogSumExp:
    """Log sum exp over the vocabulary of tiles; on a CPU torch's own takes eight times as long."""

    def __init__(self, tiling: Tiling, dtype: torch.dtype, device: torch.device) -> None:
        # Allocating a new buffer costs more than what is computed in it.
        self._buffer = torch.empty(tiling.tokens * tiling.columns, dtype=dtype, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return it for logits [C, D], as [C]."""
        _, sums, most = self._exponentials(logits)
        return sums.log_().add_(most)

    def with_mean(self, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return it, and the mean of values [C, D] under the softmax of the logits, both [C].

        The mean is 0 where all logits of a row are -inf.
        """
        exponentials, sums, most = self._exponentials(logits)
        mean = exponentials.mul_(values).sum(-1)
        mean.div_(sums.clamp_min(torch.finfo(sums.dtype).tiny))
        return sums.log_().add_(most), mean

    def _exponentials(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return exp(logits - most) [C, D], its sums [C] and `most`, each row's largest logit."""
        most = logits.amax(-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
        buffer = self._buffer[: logits.numel()].view(logits.shape)
        torch.sub(logits, most, out=buffer).exp_()
        return buffer, buffer.sum(-1), most[:, 0]


def labels_in(labels: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return which labels [C] lie in the columns, and [C, 1] where; 0 for those that do not."""
    in_tile = (labels >= columns.start) & (labels < columns.stop)
    return in_tile, torch.where(in_tile, labels - columns.start, 0)[:, None]
