"""A head whose weights take a byte each, for decoding; products are in the base's type."""

import copy

from cache_schema.errors import UsageError
from pipeline.head import AlignmentHead


def quantized_head(head: AlignmentHead) -> AlignmentHead:
    """Return a copy with int8 weights, one scale a row (torchao), compiled when first called.

    Without compiling, torchao would write the weights out in full at every token.

    Raises:
        UsageError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UsageError("--int8-head needs torchao: pip install 'mav[eight-bit]'") from error
    small = copy.deepcopy(head)
    quantize_(small, Int8WeightOnlyConfig())
    small.compile()
    return small
