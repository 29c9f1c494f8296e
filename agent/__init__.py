"""Stochastic MuZero: learns a model of its environment and plans in it through chance nodes.

Market-blind: this package sees a Gymnasium environment, arrays and its own configuration.
"""
