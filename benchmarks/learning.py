"""How well the agent learns, on markets whose best possible policy is known.

    python -m benchmarks.learning [--market Regime] [--set mu=0.3 ...] [--seeds 3] [--minutes 5] [--quick] [--json]

A score is (agent − flat) / (optimum − flat) on common random numbers (market_env/analytic.py). One configuration serves
every market and setting. PPO and DQN of stable-baselines3 are the peers this benchmark is meant to show beside it; they
are reported as missing until they are wired in.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config import AgentConfig
from agent.planner import Planner
from agent.train import RunSettings, Trainer
from market_env.analytic import Solution, optimality, solve
from market_env.analytic_env import AnalyticVectorEnv, make_vector_env

Json = dict[str, Any]

CONFIG = AgentConfig.model_validate(
    {
        "discount": 0.97,
        "network": {"width": 128, "encoder_width": 64, "latent": 64, "hidden": 128},
        "search": {"simulations": 32, "min_q_range": 1.0},
        "self_play": {"num_envs": 64},
        "replay": {"min_steps": 4000},
        "learner": {"batch_size": 128, "decay_updates": 6000, "updates_per_env_step": 0.04},
        "training": {
            "env_steps": 200_000,
            "evaluate_every": 500,
            "checkpoint_every": 10_000,
            "evaluation_episodes": 64,
        },
    }
)
EVALUATION_STEPS = 256
SCORE_EPISODES, SCORE_STEPS = 128, 512


class Envs:
    """An `agent.train.EnvFactory` of one verification market."""

    def __init__(self, market: str, parameters: Json) -> None:
        self.market, self.parameters = market, parameters

    def train(self, num_envs: int, seed: int) -> AnalyticVectorEnv:
        return make_vector_env(self.market, num_envs, seed=seed, **self.parameters)

    def validation(self, num_envs: int, seed: int) -> AnalyticVectorEnv:
        return make_vector_env(self.market, num_envs, seed=seed, **{**self.parameters, "horizon": EVALUATION_STEPS})


def learn(market: str, parameters: Json, *, seed: int, minutes: float, config: AgentConfig) -> Json:
    """Train once. Returns the final score with its standard error, and the curve."""
    envs = Envs(market, parameters)
    solution = solve(envs.train(1, 0).market)
    with tempfile.TemporaryDirectory() as directory:
        settings = RunSettings(directory=Path(directory), seed=seed, code_version="benchmark", minutes=minutes)
        trainer = Trainer(config, envs, settings)
        trainer.run()
        rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    best = _optimal_return(solution, envs, trainer.validation_seed, config.training.evaluation_episodes)
    curve = [
        {"env_steps": row["env_steps"], "seconds": row["seconds"], "score": row["score"] / best if best > 0 else None}
        for row in rows
    ]
    planner = Planner(trainer.model, config.search)

    def act(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        result, _ = planner.plan({"observation": observations}, action_mask=None)
        return result.action.astype(np.int64)

    final = optimality(
        solution.market, act, solution=solution, episodes=SCORE_EPISODES, steps=SCORE_STEPS, seed=10_000 + seed
    )
    reached = next((point for point in curve if point["score"] is not None and point["score"] >= 0.95), None)
    return {
        "score": final.score,
        "standard_error": final.standard_error,
        "mean_reward": final.agent,
        "optimal_reward": final.optimal,
        "seconds": trainer.seconds,
        "env_steps": trainer.actor.env_steps,
        "codes": rows[-1]["model/code_perplexity"],
        "env_steps_to_0.95": None if reached is None else reached["env_steps"],
        "seconds_to_0.95": None if reached is None else reached["seconds"],
        "curve": curve,
    }


def _optimal_return(solution: Solution, envs: Envs, seed: int, episodes: int) -> float:
    """Mean return of the optimum over the validation episodes."""
    env = envs.validation(episodes, seed)
    observations, _ = env.reset(seed=seed)
    total = np.zeros(episodes)
    for _ in range(EVALUATION_STEPS):
        observations, rewards, _, _, _ = env.step(solution.act(observations))
        total += rewards
    return float(total.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--market", default="Regime", help="class in market_env.analytic")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters of the market")
    parser.add_argument("--agent", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the agent's config")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0, help="training per seed")
    parser.add_argument("--quick", action="store_true", help="one seed, half a minute: only to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parameters = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    raw = CONFIG.model_dump()
    raw["search"].pop("discount")
    for key, value in (pair.split("=", 1) for pair in options.agent):
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        place[last] = json.loads(value)
    config = AgentConfig.model_validate(raw)
    seeds, minutes = (1, 0.5) if options.quick else (options.seeds, options.minutes)
    runs = [learn(options.market, parameters, seed=seed, minutes=minutes, config=config) for seed in range(seeds)]

    setting = "_".join(f"{key}{value}" for key, value in sorted(parameters.items())) or "default"
    metrics: Json = {}
    for name, unit in (("score", "1"), ("env_steps_to_0.95", "steps"), ("seconds_to_0.95", "s"), ("codes", "1")):
        values = [run[name] for run in runs if run[name] is not None]
        key = f"score_{options.market.lower()}_{setting}" if name == "score" else name
        metrics[key] = {
            "value": statistics.mean(values) if values else None,
            "unit": unit,
            "low": min(values, default=None),
            "high": max(values, default=None),
            "runs": len(values),
        }
    output = {
        "benchmark": "learning",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {"smu0": _version("smu0"), "torch": version("torch"), "numba": version("numba")},
        "metrics": metrics,
        "ratios": {},
        "missing": ["stable-baselines3 PPO", "stable-baselines3 DQN"],
        "runs": runs,
    }
    if options.json:
        print(json.dumps(output, indent=2))
        return
    print(f"{options.market} {parameters}: {output['machine']}")
    for seed, run in enumerate(runs):
        shown = "none" if run["score"] is None else f"{run['score']:.3f} ± {run['standard_error']:.3f}"
        print(
            f"  seed {seed}: score {shown}, reward {run['mean_reward']:+.4f} of {run['optimal_reward']:+.4f}, "
            f"0.95 after {run['env_steps_to_0.95']} steps and {run['seconds_to_0.95']} s; "
            f"{run['env_steps']:,} steps in {run['seconds']:.0f} s, codes {run['codes']:.1f}"
        )
        print("    " + "  ".join(f"{p['seconds']:.0f}s:{p['score'] or 0:.2f}" for p in run["curve"]))
    print("peers missing: stable-baselines3 PPO, DQN")


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "source"


if __name__ == "__main__":
    main()
