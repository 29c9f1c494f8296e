"""Scores that can be trusted.

Strategies trade through the market's own kernel, beside baselines; the report says how much of a result could be luck.
"""
