"""Attention: do tokens look at the ones behind them?"""

from __future__ import annotations

from torch_piecewise.padding_steps import Step

_ALL = "lets tokens look at all others"


def attention(step: Step) -> str:
    """What is wrong with ``scaled_dot_product_attention(query, key, value, ...)``."""
    query, key, value = (
        step.place(step.given(at, name)) for at, name in enumerate(("query", "key", "value"))
    )
    mask, causal = step.place(step.given(3, "attn_mask")), step.given(5, "is_causal", default=False)
    if step.given(4, "dropout_p", default=0.0) != 0:
        return "draws random numbers"
    places = [place for place in (query, key, value, mask) if place is not None]
    if not places or len({place.from_right for place in places}) != 1:
        return _ALL
    where = places[0].from_right[0]
    if where > 2:
        return ""  # each sequence of a batch by itself
    if where == 1 or query is None:
        return _ALL
    if key is None and value is None:
        return ""  # the queries alone are as many as the tokens
    return "" if causal is True and mask is None else _ALL
