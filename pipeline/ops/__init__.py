"""Pure torch numerics: the base's logits, aligned log-probabilities in tiles, pooling, copies.

`base_logits` reconstructs logits from a cache's encoding, `aligned_logprobs` and `projection` are
training's inner loop, `tensor_storage` pools states and turns tensors into stored arrays and back.
"""
