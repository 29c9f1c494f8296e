"""Experiments: the packages' configurations composed, one YAML each."""
