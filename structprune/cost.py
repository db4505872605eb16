"""Prices as polynomials: a cost is a sum of products of axis sizes, so any width is priced without running anything.

1 MAC (multiply-accumulate) is 2 FLOPs. Counted are the contractions: matrix products, convolutions, attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from structprune import axes
from structprune.axes import Atom, Expr, Prod, Sum, Table

__all__ = ["Polynomial", "Terms", "compile_products", "product_terms"]

Terms = dict[tuple[int, ...], float]
"""A polynomial: from the variables of a product, sorted, to its coefficient."""


class Polynomial:
    """A sum of products of counts, evaluated at once; ``constant`` is the part that no count changes."""

    def __init__(self, terms: Terms, variables: int) -> None:
        self.constant = terms.get((), 0.0)
        rest = [(key, value) for key, value in terms.items() if key]
        width = max((len(key) for key, _ in rest), default=1)
        self._index = np.full((len(rest), width), variables, dtype=np.int64)
        for row, (key, _) in enumerate(rest):
            self._index[row, : len(key)] = key
        self._coefficients = np.array([value for _, value in rest], dtype=np.float64)
        self._variables = variables

    def _products(self, counts: np.ndarray) -> np.ndarray:
        extended = np.append(np.asarray(counts, dtype=np.float64), 1.0)
        products: np.ndarray = self._coefficients * extended[self._index].prod(axis=1)
        return products

    def __call__(self, counts: np.ndarray) -> float:
        """Return the value at ``counts`` (one number for each variable)."""
        return float(self.constant + self._products(counts).sum())

    def many(self, counts: np.ndarray) -> np.ndarray:
        """Return the values at ``counts``, float64 ``[choices]`` for ``[choices, variables]``."""
        extended = np.hstack([np.asarray(counts, dtype=np.float64), np.ones((len(counts), 1))])
        products = self._coefficients * extended[:, self._index].prod(axis=2)
        values: np.ndarray = self.constant + products.sum(axis=1)
        return values

    def governed(self, counts: np.ndarray) -> np.ndarray:
        """Return for each variable the sum of the terms it occurs in, float64 ``[variables]``."""
        products = self._products(counts)
        found = np.zeros(self._variables + 1)
        for row, value in zip(self._index, products, strict=True):
            found[np.unique(row)] += value
        return found[:-1]


def compile_products(
    products: Iterable[Sequence[Expr]], variables: Mapping[Atom, int], count: int
) -> Polynomial:
    """Return the polynomial of a sum of products of sizes; atoms that are no variable count with their full size."""
    terms: Terms = {}
    expanded: dict[int, tuple[Expr, Terms]] = {}
    for factors in products:
        for key, value in product_terms(factors, variables, expanded).items():
            terms[key] = terms.get(key, 0.0) + value
    return Polynomial(terms, count)


def product_terms(
    factors: Sequence[Expr], variables: Mapping[Atom, int], known: dict[int, tuple[Expr, Terms]]
) -> Terms:
    """Return the product of sizes as a polynomial; ``known`` keeps what was expanded, for other products."""
    expanded = [_expand(axes.normal(factor), variables, known) for factor in factors]
    product: Terms = {(): 1.0}
    for terms in sorted(expanded, key=len):  # numbers first: they only scale
        product = _times(product, terms)
    return product


def _expand(expr: Expr, variables: Mapping[Atom, int], known: dict[int, tuple[Expr, Terms]]) -> Terms:
    if id(expr) in known:
        return known[id(expr)][1]
    terms: Terms
    if isinstance(expr, Atom) and expr in variables:
        terms = {(variables[expr],): 1.0}
    elif isinstance(expr, Sum):
        terms = {}
        for part in expr.parts:
            for key, value in _expand(axes.normal(part), variables, known).items():
                terms[key] = terms.get(key, 0.0) + value
    elif isinstance(expr, Prod):
        terms = {(): 1.0}
        for item in expr.factors:
            terms = _times(terms, _expand(axes.normal(item), variables, known))
    elif isinstance(expr, Table):
        terms = _expand(axes.normal(expr.extent), variables, known)
    else:
        terms = {(): float(expr.size)}
    known[id(expr)] = (expr, terms)
    return terms


def _times(a: Terms, b: Terms) -> Terms:
    if len(a) == 1 and () in a:
        scale = a[()]
        return {key: value * scale for key, value in b.items()}
    product: Terms = {}
    for left, x in a.items():
        for right, y in b.items():
            key = tuple(sorted(left + right))
            product[key] = product.get(key, 0.0) + x * y
    return product
