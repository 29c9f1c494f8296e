"""PPO and DQN of stable-baselines3 on the verification markets and on CartPole: the peers of benchmarks/learning.py.

    python -m benchmarks.learning_peers --job '{"agent": "ppo", "setting": "regime_base", "seed": 0, "minutes": 1}'

Run by benchmarks/learning.py with an interpreter that has stable-baselines3. Hyper-parameters are the library's own
but for what the problems ask of any agent: the discount, and vectors of environments instead of single ones.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning import (
    CONFIG,
    EVALUATION_EPISODES,
    MISSING,
    SETTINGS,
    Job,
    Setting,
    Verification,
    merged,
    relative,
    score,
)

EVALUATE_EVERY = 12_800  # environment steps: about as often as smu0's curve


def train(job: Job) -> dict[str, Any]:
    """Train a peer for job.minutes. Returns what `benchmarks.learning.learn` returns, as far as it applies."""
    import torch
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(1)
    setting = SETTINGS[job.setting]
    discount = float(merged(CONFIG, setting.agent)["discount"])
    env = _vector(setting, 16, job.seed)
    common: dict[str, Any] = {"gamma": discount, "seed": job.seed, "device": "cpu"}
    if job.agent == "ppo":
        model: Any = PPO("MlpPolicy", env, n_steps=128, batch_size=256, **common)
    else:
        # 16 environments step at once: as many gradient steps as the library takes for as many steps of one.
        model = DQN(
            "MlpPolicy",
            env,
            learning_rate=1e-3,
            buffer_size=100_000,
            learning_starts=4_000,
            train_freq=1,
            gradient_steps=4,
            batch_size=128,
            target_update_interval=1_000,
            exploration_fraction=0.2,
            exploration_final_eps=0.02,
            **common,
        )

    def act(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        actions, _ = model.predict(observations, deterministic=True)
        return np.asarray(actions, np.int64)

    curve: list[dict[str, Any]] = []
    validation_seed = 1_000_003 + job.seed
    started = time.monotonic()

    class Curve(BaseCallback):
        def _on_step(self) -> bool:
            seconds = time.monotonic() - started
            if self.num_timesteps // EVALUATE_EVERY > len(curve):
                value, _ = _evaluate(setting, act, validation_seed, EVALUATION_EPISODES)
                curve.append({"env_steps": self.num_timesteps, "seconds": time.monotonic() - started, "score": value})
            return seconds < 60 * job.minutes

    steps = 100_000_000 if job.agent == "ppo" else 2_000_000  # the schedule of DQN's exploration needs an end
    model.learn(total_timesteps=steps, callback=Curve())
    seconds = time.monotonic() - started
    result = {"seconds": seconds, "env_steps": int(model.num_timesteps)}
    if setting.is_market:
        return result | score(setting, act, job.seed) | {"curve": relative(curve, setting, validation_seed)}
    value, error = _evaluate(setting, act, 10_000 + job.seed, 100)
    return result | {"score": value, "standard_error": error, "curve": curve}


def _evaluate(setting: Setting, act: Any, seed: int, episodes: int) -> tuple[float, float]:
    """Mean return of whole episodes and its standard error."""
    if setting.is_market:
        env = Verification(setting).validation(episodes, seed)
    else:
        import gymnasium

        env = gymnasium.make_vec(setting.market, num_envs=episodes, vectorization_mode="sync")
    observations, _ = env.reset(seed=seed)
    total, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = env.step(act(np.asarray(observations, np.float32)))
        total += np.where(running, rewards, 0.0)
        running &= ~(terminated | truncated)
    return float(total.mean()), float(total.std(ddof=1) / np.sqrt(episodes))


def _vector(setting: Setting, num_envs: int, seed: int) -> Any:
    """A stable-baselines3 vector environment."""
    if not setting.is_market:
        from stable_baselines3.common.env_util import make_vec_env

        return make_vec_env(setting.market, n_envs=num_envs, seed=seed)
    from benchmarks.sb3 import VectorAdapter

    return VectorAdapter(Verification(setting).train(num_envs, seed), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True)
    options = parser.parse_args()
    try:
        import stable_baselines3  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit(MISSING) from None
    print(json.dumps(train(Job(**json.loads(options.job)))))


if __name__ == "__main__":
    main()
