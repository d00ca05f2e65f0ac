"""Which linear layers are the attention projections of a model: the default targets."""

from __future__ import annotations

import re

from torch import nn

PROJECTIONS = frozenset(
    # query, key and value, apart or fused, and the output
    "q_proj k_proj v_proj o_proj out_proj output_proj proj projection projection_layer output dense "
    "query key value query_proj key_proj value_proj q k v o q_lin k_lin v_lin out_lin linear_q linear_k linear_v "
    "linear_out Wq Wk Wv Wo wq wk wv wo to_q to_k to_v to_kv to_query to_key to_value to_out "
    "project_q project_k project_v projection_query projection_key projection_value q_head k_head v_head post_proj "
    "qkv qkv_proj qkv_layer Wqkv W_pack c_attn q_attn c_proj query_key_value query_key in_proj in_proj_qkv att_proj "
    "attention_out kv_proj key_value "
    # in two steps, by a narrow middle
    "q_a_proj q_b_proj kv_a_proj kv_a_proj_with_mqa o_a_proj o_b_proj q_down_proj q_up_proj".split()
)
"""Names of the projections of tokens in the attention modules of transformers. Others there (gates, position biases,
routing between blocks) see other inputs or shape the attention's weights; they are left out."""

_NAME = re.compile("attn|attention", re.IGNORECASE)
_CLASS = re.compile("(attention|attn)$", re.IGNORECASE)


NOT_OF_TOKENS = frozenset({"pooler", "dt_proj"})
"""Parts of names of linear layers that `all-linear` leaves out: poolers see one vector for a whole sequence, and the
weight of Mamba's `dt_proj` is read without the layer being called."""


def sees_tokens(layer: str) -> bool:
    """Whether a layer, by its full name, is called on the tokens of a sequence."""
    return NOT_OF_TOKENS.isdisjoint(layer.split("."))


def in_attention(model: nn.Module, layer: str) -> bool:
    """Whether a layer, by its full name, lies inside an attention module: one that says so by its own name or the name
    of its class."""
    module = model
    for part in layer.split(".")[:-1]:
        module = getattr(module, part)
        if _NAME.search(part) or _CLASS.search(type(module).__name__):
            return True
    return False


def is_projection(layer: str) -> bool:
    """Whether a layer of an attention module is one of its projections. In lists (`to_out.0`) the list is asked."""
    parts = [part for part in layer.split(".") if not part.isdigit()]
    return parts[-1] in PROJECTIONS
