"""Stochastic tree search: see README.md in this folder."""

from agent.search.weights import CoreWeights, SearchInputError

__all__ = ["CoreWeights", "SearchInputError"]
