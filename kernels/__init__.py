"""Forgetting attention as tensors in, tensors out; open api.py first."""

from fox.kernels.api import (
    computed_share,
    forgetting_attention,
    forgetting_attention_varlen,
    forgetting_attention_with_kvcache,
)
from fox.kernels.context import ContextSplit
from fox.kernels.context_parallel import context_parallel_attention, transferred_share
from fox.kernels.flash.tuning import tune
from fox.kernels.paged import paged_attention, sort_pages

__all__ = [
    "ContextSplit",
    "computed_share",
    "context_parallel_attention",
    "forgetting_attention",
    "forgetting_attention_varlen",
    "forgetting_attention_with_kvcache",
    "paged_attention",
    "sort_pages",
    "transferred_share",
    "tune",
]
