from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from agent.search import CoreWeights, TableModel


class Batch(NamedTuple):
    """Arguments of a search, as keywords."""

    arguments: dict[str, Any]

    def rows(self, rows: list[int]) -> dict[str, Any]:
        return {name: value[rows] if isinstance(value, np.ndarray) else value for name, value in self.arguments.items()}


@pytest.fixture
def small_core() -> Callable[..., CoreWeights]:
    def build(*, actions: int = 3, codes: int = 4, seed: int = 0, latent: int = 12, hidden: int = 20) -> CoreWeights:
        return CoreWeights.random(seed, actions=actions, codes=codes, latent=latent, hidden=hidden, atoms=11)

    return build


@pytest.fixture
def random_roots() -> Callable[..., Batch]:
    """Roots, masks (at least one action each) and seeds, different in every row."""

    def draw(*, batch: int, actions: int = 3, latent: int = 12, seed: int = 0, masked: bool = True) -> Batch:
        rng = np.random.default_rng(seed)
        mask = rng.random((batch, actions)) < 0.7
        mask[np.arange(batch), rng.integers(actions, size=batch)] = True
        return Batch(
            {
                "latents": rng.random((batch, latent), dtype=np.float32),
                "policy_logits": rng.standard_normal((batch, actions)).astype(np.float32),
                "values": rng.standard_normal(batch).astype(np.float32),
                "action_mask": mask if masked else None,
                "seeds": rng.integers(2**63, size=batch, dtype=np.uint64),
            }
        )

    return draw


@pytest.fixture
def bandit() -> Callable[..., TableModel]:
    """One decision between arms with known returns: an arm's afterstate is worth its return, one sure outcome pays
    it, and nothing that comes after matters once the discount is 0. State 0 is the root."""

    def build(returns: list[float], *, logits: list[float] | None = None, codes: int = 1) -> TableModel:
        arms = len(returns)
        chance = np.full((arms, codes), -np.inf, np.float32)
        chance[:, 0] = 0.0
        return TableModel(
            afterstate_of=np.tile(np.arange(arms, dtype=np.int32), (2, 1)),
            state_of=np.ones((arms, codes), np.int32),
            policy_logits=np.array([logits or [0.0] * arms, [0.0] * arms], np.float32),
            values=np.zeros(2, np.float32),
            chance_logits=chance,
            afterstate_values=np.array(returns, np.float32),
            rewards=np.tile(np.array(returns, np.float32)[:, None], (1, codes)),
        )

    return build


@pytest.fixture
def chain() -> Callable[..., TableModel]:
    """States 0, 1, 2, … one after the other: one action, one outcome, so every line of the backup can be followed."""

    def build(*, values: list[float], afterstate_values: list[float], rewards: list[float]) -> TableModel:
        length = len(values)
        return TableModel(
            afterstate_of=np.arange(length, dtype=np.int32)[:, None],
            state_of=np.minimum(np.arange(1, length + 1, dtype=np.int32), length - 1)[:, None],
            policy_logits=np.zeros((length, 1), np.float32),
            values=np.array(values, np.float32),
            chance_logits=np.zeros((length, 1), np.float32),
            afterstate_values=np.array(afterstate_values, np.float32),
            rewards=np.array(rewards, np.float32)[:, None],
        )

    return build
