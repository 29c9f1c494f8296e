"""A run on one Ray node; a second joins, is used, and leaves. Prints what happened as JSON.

A script and no test: Ray keeps threads and sockets that a test process would be blamed for.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import ray
from ray.cluster_utils import Cluster as RayCluster

from agent.config import AgentConfig
from agent.distributed import OBJECT_STORE_BYTES, Cluster, DistributedTrainer
from agent.train import RunSettings

BUDGET = 10**9  # the script ends the run itself


class CartPole:
    """An EnvFactory of a Gymnasium environment."""

    def train(self, num_envs: int, seed: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync")

    def validation(self, num_envs: int, seed: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return self.train(num_envs, seed)


def main(directory: Path) -> dict[str, Any]:
    config = AgentConfig.model_validate(
        {
            "network": {"width": 16, "encoder_width": 16, "latent": 8, "hidden": 16, "support_atoms": 11},
            "search": {"simulations": 4},
            "self_play": {"num_envs": 8},
            "replay": {"min_steps": 200, "capacity_steps": 4000},
            "learner": {"batch_size": 16, "unroll": 2, "updates_per_env_step": 0.05, "threads": 1},
            "training": {"env_steps": BUDGET, "evaluate_every": 400, "checkpoint_every": 400, "evaluation_episodes": 2},
        }
    )
    # Room for the learner, the replay, the evaluator and one self-play actor; the second waits for a node.
    store = {"object_store_memory": OBJECT_STORE_BYTES // 2, "include_dashboard": False}
    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 3, **store})
    ray.init(address=cluster.address, log_to_driver=False)
    settings = RunSettings(directory=directory / "run", seed=0, code_version="test")
    trainer = DistributedTrainer(config, CartPole(), settings, Cluster(actors=2, chunk=10))
    seen: dict[str, Any] = {}

    def until(condition: Callable[[], bool]) -> None:
        while not condition():
            assert running.is_alive(), "the run ended early"
            time.sleep(0.1)

    # Ray starts and stops nodes from the main thread only, so it is the run that has one of its own.
    running = threading.Thread(target=trainer.run)
    running.start()
    until(lambda: trainer.env_steps >= 1_000)
    node = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES // 2)
    until(lambda: trainer.steps_by_seat[1] > 0)
    seen["steps_of_second"] = trainer.steps_by_seat[1]
    cluster.remove_node(node, allow_graceful=False)
    until(lambda: trainer.deaths["self-play"] > 0)
    seen["env_steps_when_it_left"] = before = trainer.env_steps
    until(lambda: trainer.env_steps >= before + 2_000)
    trainer.stop()
    running.join()
    seen |= {"nodes": len(trainer.nodes), "deaths": trainer.deaths["self-play"], "env_steps": trainer.env_steps}
    ray.shutdown()
    cluster.shutdown()
    return seen


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
