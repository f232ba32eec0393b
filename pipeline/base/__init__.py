"""The frozen base model: finding it, loading it whole or not at all, and taking its hidden states.

`model` has `BaseModel` and `load_base`; `hidden_states` and `layer_selection` say what is taken;
`packed_attention` runs many texts as one; `gguf_*` keep a GGUF file as safetensors.
"""
