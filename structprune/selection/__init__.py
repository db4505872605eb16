"""The steps of `select`: match names, join constraints into units, rank their steps, search the budget.

Everything here is numbers: counts of channels, scores, and the graph's price for a vector of counts.
"""
