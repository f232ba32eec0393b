"""Online decoding: base and head together, alpha chosen at every call.

`inference` has `MAVInference` and `responder` what it does with prompts; `options` says how tokens
are chosen, `alpha` how strongly; `aligned_lm` steers inside a pass, `continuous_batching` is what a
server decodes with.
"""
