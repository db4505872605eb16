"""The unstructured mode: single weights set to zero behind masks that hold during fine-tuning.

A mask is a parametrization of torch's own (`torch.nn.utils.parametrize`): the layer computes with
`where(mask, weight, 0)`, so whatever an optimiser does to the tensor behind it (momentum, weight decay, a
step that was already planned), a removed weight is exactly zero and gets no gradient. `finalize` turns the
result back into plain tensors.
"""

from __future__ import annotations

from structprune.masking.report import SparsityReport, TensorSparsity, nonzeros, sparsity_report
from structprune.masking.sparsify import finalize, sparsify

__all__ = ["SparsityReport", "TensorSparsity", "finalize", "nonzeros", "sparsify", "sparsity_report"]
