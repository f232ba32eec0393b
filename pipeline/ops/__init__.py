"""Pure torch numerics: the base's logits, aligned log-probabilities in tiles, pooling, copies.

`base_logits` gives logits back from a cache's encoding, `aligned_logprobs` and `projection` are
training's inner loop, `tensor_storage` turns tensors into stored arrays and back.
"""
