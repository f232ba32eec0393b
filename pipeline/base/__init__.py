"""The frozen base model: find it, load it completely, take its hidden states.

`model` has `BaseModel`, `loading` has `load_base`; `hidden_states` and `layer_selection` say what
is taken; `packed_attention` runs many texts as one; `gguf_*` keep a GGUF file as safetensors.
"""
