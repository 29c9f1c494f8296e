"""Mixed precision learns what single precision learns."""

import numpy as np
import pytest
import torch

from agent.config import LearnerConfig, NetworkConfig, ReplayConfig
from agent.learner import Learner
from agent.networks.model import StochasticMuZero
from agent.replay import Record, Replay

NETWORK = NetworkConfig(width=16, encoder_width=16, latent=8, hidden=16, codes=4, support_atoms=11)


def _last_loss(precision: str) -> float:
    rng = np.random.default_rng(0)
    shapes = {"observation": ((5,), np.dtype(np.float32))}
    replay = Replay(ReplayConfig(capacity_steps=400), rows=4, actions=3, observations=shapes, discount=0.9)
    for _ in range(60):
        replay.add(
            Record(
                observations={"observation": rng.normal(size=(4, 5)).astype(np.float32)},
                action=rng.integers(3, size=4),
                reward=rng.normal(size=4).astype(np.float32),
                terminated=np.zeros(4, bool),
                has_transition=np.ones(4, bool),
                action_mask=np.ones((4, 3), bool),
                policy=np.full((4, 3), 1 / 3, np.float32),
                root_value=np.zeros(4, np.float32),
                trust=np.ones(4, np.float32),
            )
        )
    torch.manual_seed(0)
    model = StochasticMuZero({"observation": (5,)}, 3, NETWORK)
    config = LearnerConfig.model_validate({"batch_size": 32, "precision": precision, "consistency_weight": 0.5})
    learner = Learner(model, config, decode=lambda entries: entries, device=torch.device("cpu"))
    batch = replay.sample(32, config.unroll, np.random.default_rng(1))
    losses = [learner.update(batch)[0]["loss/total"] for _ in range(30)]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return losses[-1]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lower_precision_ends_where_single_precision_ends(precision: str) -> None:
    assert _last_loss(precision) == pytest.approx(_last_loss("float32"), rel=0.01)
