"""Rewriting a model as a graph in which every number that fixes a size can follow a cut."""

from structprune.rewriting.attention import MultiheadAttention, replace_attention
from structprune.rewriting.rewriter import rewrite

__all__ = ["MultiheadAttention", "replace_attention", "rewrite"]
