"""Learning from somebody else's episodes alone: how far above the player who recorded them?

    python -m benchmarks.offline                     CartPole: a clumsy balancer's 200 episodes, no step of one's own
    python -m benchmarks.offline --updates 4000 --seed 1
    python -m benchmarks.offline --reanalyse 0       what is imitated, without searching the recorded states anew

The player moves the cart under the pole, but every action is random with probability `--noise`. The agent sees those
episodes only (agent/demonstrations.py) and is then evaluated in 100 episodes of its own. Beside it: the same player
without the noise, because copying the commonest action of a noisy player already takes the noise away.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agent.config import AgentConfig
from agent.demonstrations import Demonstrations, record_episodes
from agent.evaluation import evaluate
from agent.planner import Planner
from agent.train import RunSettings, Trainer
from benchmarks.learning import merged

CONFIG: dict[str, Any] = {
    "discount": 0.99,
    "network": {"width": 128, "encoder_width": 16, "latent": 64, "hidden": 128, "codes": 1, "support_limit": 110.0},
    "search": {"simulations": 16, "threads": 1},
    "self_play": {"num_envs": 1},
    "replay": {"n_step": 10, "absorbing": True, "reanalyse_ratio": 0.5},
    "learner": {"batch_size": 128, "learning_rate": 2e-3},
    "training": {"env_steps": 0, "evaluate_every": 500, "checkpoint_every": 1_000_000, "evaluation_episodes": 16},
}


class CartPole:
    """An `agent.train.EnvFactory`."""

    def train(self, num_envs: int, seed: int) -> Any:
        return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync")

    def validation(self, num_envs: int, seed: int) -> Any:
        return self.train(num_envs, seed)


def record(episodes: int, noise: float, seed: int) -> Demonstrations:
    """Episodes of the clumsy balancer."""
    rng = np.random.default_rng(seed)

    def choose(observations: Any, mask: Any, infos: Any) -> NDArray[np.int64]:
        _, _, angle, angular_velocity = observations["observation"].T
        falls_right = angle + 0.5 * angular_velocity > 0
        random = rng.random(len(angle)) < noise
        return np.where(random, rng.integers(2, size=len(angle)), falls_right).astype(np.int64)

    env = CartPole().train(16, seed)
    return record_episodes(env, choose, episodes=episodes, seed=seed, source={"player": "clumsy", "noise": noise})


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=int, default=200, help="recorded")
    parser.add_argument("--noise", type=float, default=0.7, help="share of random actions in the recorded play")
    parser.add_argument("--updates", type=int, default=2_000)
    parser.add_argument("--reanalyse", type=float, default=CONFIG["replay"]["reanalyse_ratio"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="some seconds, to see that it works")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    updates = 20 if given.quick else given.updates
    recorded = record(given.episodes, given.noise, given.seed)
    behaviour, calm = recorded.episode_returns(), record(100, 0.0, given.seed).episode_returns()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "clumsy.safetensors"
        recorded.save(file)
        change = {
            "replay": {"demonstrations": str(file), "reanalyse_ratio": given.reanalyse},
            "learner": {"decay_updates": updates},
            "training": {"offline_updates": updates},
        }
        config = AgentConfig.model_validate(merged(CONFIG, change))
        settings = RunSettings(directory=Path(directory) / "run", seed=given.seed, code_version="benchmark")
        trainer = Trainer(config, CartPole(), settings)
        started = time.process_time()
        trainer.run()
        seconds = time.process_time() - started
    planner = Planner(trainer.learner.acting, config.search)
    found = {}
    for name, simulations in (("search", None), ("prior", 0)):
        result = evaluate(CartPole().validation(100, 0), planner, seed=10_000 + given.seed, simulations=simulations)
        found[name] = {"score": result.score, "standard_error": result.standard_error}
    metrics = {
        "behaviour": {"value": float(behaviour.mean()), "unit": "return", "high": float(behaviour.max())},
        "behaviour_without_noise": {"value": float(calm.mean()), "unit": "return"},
        "recorded_steps": {"value": recorded.steps, "unit": "steps"},
        **{f"learnt_{name}": {"value": each["score"], "unit": "return", **each} for name, each in found.items()},
        "cpu_seconds": {"value": seconds, "unit": "s"},
    }
    if given.json:
        print(json.dumps({"benchmark": "offline", "seed": given.seed, "load": os.getloadavg()[0], "metrics": metrics}))
        return
    print(f"recorded {len(behaviour)} episodes, {recorded.steps:,} steps: mean {behaviour.mean():.1f}, ", end="")
    print(f"best {behaviour.max():.0f}; the same player without noise {calm.mean():.1f}")
    for name, each in found.items():
        print(f"learnt from them alone, {name}: {each['score']:.1f} ± {each['standard_error']:.1f} (100 episodes)")
    print(f"{updates:,} updates, {seconds:.0f} s of the processor, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
