"""The table of a cache's arrays: names, dimensions, types and meaning.

Writer, reader, size estimates, docs and tests all derive from `TABLE`. Arrays are of three kinds:

- `block`: one row per response token, or one per block; a shard holds the rows of one block.
- `plan`: what is known before the base model runs (the rows and ids of each pair).
- `unembedding`: one copy of the base's output embedding, for factored logits.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["block", "plan", "unembedding"]


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One row of the table.

    Attributes:
        path: Path of the array inside the store.
        dims: Names of its dimensions; `dimension_sizes` gives their lengths.
        dtype: NumPy type as stored; `states` stands for the manifest's type of hidden states, and
            `codes` for the same type, or for the type of the codes where states are quantized.
        kind: When it is written, and how it is chunked.
        meaning: One line for the documentation.
    """

    path: str
    dims: tuple[str, ...]
    dtype: str
    kind: Kind
    meaning: str


TABLE: Final[tuple[ArraySpec, ...]] = (
    ArraySpec(
        path="hidden_states",
        dims=("token", "layer", "width"),
        dtype="codes",
        kind="block",
        meaning="Pooled states of the chosen layers at the position that predicts the token",
    ),
    ArraySpec(
        path="final_hidden_state",
        dims=("token", "hidden"),
        dtype="codes",
        kind="block",
        meaning="Input of the output embedding; left out where hidden_states holds it unpooled",
    ),
    ArraySpec(
        path="hidden_states_token_scale",
        dims=("token", "layer"),
        dtype="float32",
        kind="block",
        meaning="Factor of each token's codes, where states are quantized",
    ),
    ArraySpec(
        path="hidden_states_channel_scale",
        dims=("block", "layer", "width"),
        dtype="float32",
        kind="block",
        meaning="Factor of each channel's codes over a block (int8)",
    ),
    ArraySpec(
        path="final_hidden_state_token_scale",
        dims=("token",),
        dtype="float32",
        kind="block",
        meaning="The same for final_hidden_state",
    ),
    ArraySpec(
        path="final_hidden_state_channel_scale",
        dims=("block", "hidden"),
        dtype="float32",
        kind="block",
        meaning="The same for final_hidden_state (int8)",
    ),
    ArraySpec(
        path="labels",
        dims=("token",),
        dtype="int32",
        kind="block",
        meaning="The response token that is predicted",
    ),
    ArraySpec(
        path="base_logprobs",
        dims=("token",),
        dtype="float32",
        kind="block",
        meaning="Natural log-probability of the label under the base model (encodings dense, topk)",
    ),
    ArraySpec(
        path="base_logits",
        dims=("token", "vocab"),
        dtype="states",
        kind="block",
        meaning="Logits of the base model (encoding dense)",
    ),
    ArraySpec(
        path="topk_logits",
        dims=("token", "top_k"),
        dtype="float32",
        kind="block",
        meaning="The largest logits, in descending order (encoding topk)",
    ),
    ArraySpec(
        path="topk_ids",
        dims=("token", "top_k"),
        dtype="int32",
        kind="block",
        meaning="The tokens that topk_logits belong to (encoding topk)",
    ),
    ArraySpec(
        path="rest_logsumexp",
        dims=("token",),
        dtype="float32",
        kind="block",
        meaning="Log-sum-exp of all logits outside the largest (encoding topk)",
    ),
    ArraySpec(
        path="pairs/response_start",
        dims=("pair", "answer"),
        dtype="int64",
        kind="plan",
        meaning="Row of the first token of the chosen (0) and the rejected (1) answer",
    ),
    ArraySpec(
        path="pairs/response_length",
        dims=("pair", "answer"),
        dtype="int32",
        kind="plan",
        meaning="Tokens of each answer, end-of-sequence included",
    ),
    ArraySpec(
        path="pairs/block_start",
        dims=("block_edge",),
        dtype="int64",
        kind="plan",
        meaning="First pair of each block, then the number of pairs",
    ),
    ArraySpec(
        path="pairs/pair_id",
        dims=("pair",),
        dtype="uint64",
        kind="plan",
        meaning="Hash of prompt, chosen and rejected text; pairs are stored in this order",
    ),
    ArraySpec(
        path="pairs/prompt_id",
        dims=("pair",),
        dtype="uint64",
        kind="plan",
        meaning="Hash of the prompt text; decides which pairs are held out",
    ),
    ArraySpec(
        path="pairs/source",
        dims=("pair",),
        dtype="uint16",
        kind="plan",
        meaning="Which of the manifest's data sets the pair came from",
    ),
    ArraySpec(
        path="pairs/source_row",
        dims=("pair",),
        dtype="int64",
        kind="plan",
        meaning="Row of that data set",
    ),
    ArraySpec(
        path="unembedding/weight",
        dims=("vocab", "hidden"),
        dtype="states",
        kind="unembedding",
        meaning="W of the output embedding (encoding factored)",
    ),
    ArraySpec(
        path="unembedding/bias",
        dims=("vocab",),
        dtype="states",
        kind="unembedding",
        meaning="b of the output embedding, where it has one (encoding factored)",
    ),
)
