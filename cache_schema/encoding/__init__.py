"""How values become bytes: element types, quantized hidden states, lossless compression."""
