"""Stochastic tree search: see README.md in this folder."""

from agent.search.config import SearchConfig
from agent.search.engine import SearchEngine
from agent.search.result import Node, SearchResult, SearchTrees, VariationStep, sample_actions
from agent.search.tables import Roots, TableModel
from agent.search.weights import CoreWeights, SearchInputError

__all__ = [
    "CoreWeights",
    "Node",
    "Roots",
    "SearchConfig",
    "SearchEngine",
    "SearchInputError",
    "SearchResult",
    "SearchTrees",
    "TableModel",
    "VariationStep",
    "sample_actions",
]
