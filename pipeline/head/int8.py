"""A head whose weights take a byte each, for decoding; products are in the base's type."""

import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.head.model import AlignmentHead


def quantize_head(head: AlignmentHead) -> None:
    """Put int8 weights in place of a head's, one scale a row (torchao); compiled when first called.

    Without compiling, torchao would write the weights out in full at every token.

    Raises:
        UsageError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UsageError("--int8-head needs torchao: pip install 'mav-align[eight-bit]'") from error
    quantize_(head, Int8WeightOnlyConfig())
    head.compile()


def is_quantized(head: AlignmentHead) -> bool:
    """Tell whether a head's weights take a byte each."""
    return type(head.project.weight.data) is not torch.Tensor
