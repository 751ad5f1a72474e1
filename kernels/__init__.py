"""Forgetting attention as tensors in, tensors out; open api.py first."""

from fox.kernels.api import (
    computed_share,
    forgetting_attention,
    forgetting_attention_varlen,
    forgetting_attention_with_kvcache,
)
from fox.kernels.flash.tuning import tune
from fox.kernels.paged import paged_attention, sort_pages

__all__ = [
    "computed_share",
    "forgetting_attention",
    "forgetting_attention_varlen",
    "forgetting_attention_with_kvcache",
    "paged_attention",
    "sort_pages",
    "tune",
]
