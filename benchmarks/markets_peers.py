"""PPO and DQN of stable-baselines3 on real bars: the peers of benchmarks/markets.py.

Run by benchmarks/markets.py with an interpreter that has stable-baselines3. Hyper-parameters are the library's own but
for the discount, which the problem sets, and for vectors of environments instead of single ones. The best weights are
kept by the return on the validation split, looked at about ten times a run, as smu0's are.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.policy import Decision, Observations, decision_from_actions
from backtest import inputs, report
from backtest.runner import Stretch, run_policy
from backtest.study import Identity, Terms, examine
from backtest.trials import TrialsLedger
from benchmarks.markets import CONFIG, FILL_SEEDS, MISSING, Job
from configs.environments import MarketEnvs
from configs.experiment import Experiment, load_experiment
from market_env.vector import MarketVectorEnv

ENVS = 16
LOOKS = 10  # at the validation split


class PeerPolicy:
    """A stable-baselines3 model as an `agent.policy.Policy`."""

    def __init__(self, model: Any, num_actions: int) -> None:
        self.model = model
        self.num_actions = num_actions

    def act(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None = None,
        simulations: int | None = None,
    ) -> Decision:
        """Greedy. The model knows no masks and does not plan: both arguments are for planners."""
        action, _ = self.model.predict(dict(observations), deterministic=True)
        return decision_from_actions(np.asarray(action, np.int64), self.num_actions)


def train(job: Job, trials: Path) -> dict[str, Any]:
    """Train, choose, test. trials: ledger of evaluations. Returns what benchmarks/markets.py keeps."""
    import torch
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(1)
    assert job.seconds is not None, "a peer needs its budget"
    experiment = load_experiment(CONFIG, job.overrides)
    envs = MarketEnvs(experiment)
    common: dict[str, Any] = {"gamma": experiment.agent.discount, "seed": job.seed, "device": "cpu"}
    env = _vector(experiment, envs, job.seed)
    if job.agent == "ppo":
        model: Any = PPO("MultiInputPolicy", env, n_steps=256, batch_size=256, **common)
    else:
        model = DQN(
            "MultiInputPolicy", env, learning_rate=1e-3, buffer_size=50_000, learning_starts=4_000, train_freq=1,
            gradient_steps=4, batch_size=128, target_update_interval=1_000, exploration_fraction=0.2,
            exploration_final_eps=0.02, **common,
        )  # fmt: skip
    best: dict[str, Any] = {"score": -np.inf, "weights": None}
    started, spent_looking = time.monotonic(), 0.0
    seconds = job.seconds

    def look() -> None:
        nonlocal spent_looking
        began = time.monotonic()
        score = _validation_return(model, experiment, envs, job.seed)
        if score >= best["score"]:
            weights = io.BytesIO()
            torch.save(model.policy.state_dict(), weights)
            best.update(score=score, weights=weights.getvalue(), env_steps=int(model.num_timesteps))
        print(f"{began - started:.0f}s steps {model.num_timesteps:,} validation {score:+.2f}", file=sys.stderr)
        spent_looking += time.monotonic() - began

    class Budget(BaseCallback):
        looks = 0

        def _on_step(self) -> bool:
            # smu0's seconds include its looks at the validation split, and so do these.
            spent = time.monotonic() - started
            if spent > seconds * (self.looks + 1) / LOOKS:
                self.looks += 1
                look()
            return spent < seconds

    model.learn(total_timesteps=100_000_000 if job.agent == "ppo" else 500_000, callback=Budget())
    trained = {"seconds": time.monotonic() - started, "env_steps": int(model.num_timesteps), "best": best["score"]}
    if best["weights"] is None:
        look()
    model.policy.load_state_dict(torch.load(io.BytesIO(best["weights"]), weights_only=True))
    return {"training": trained, "report": _judge(model, experiment, job, trials), "looking_seconds": spent_looking}


def _validation_return(model: Any, experiment: Experiment, envs: MarketEnvs, seed: int) -> float:
    env = MarketVectorEnv(envs.markets("validation"), experiment.market.for_evaluation(), num_envs=4, seed=seed)
    observations, _ = env.reset(seed=seed)
    total, running = np.zeros(4), np.ones(4, bool)
    while running.any():
        actions, _ = model.predict(observations, deterministic=True)
        observations, rewards, terminated, truncated, _ = env.step(np.asarray(actions, np.int64))
        total += np.where(running, rewards, 0.0)
        running &= ~(terminated | truncated)
    return float(total.mean())


def _judge(model: Any, experiment: Experiment, job: Job, trials: Path) -> dict[str, Any]:
    """The test split through the backtest, as `python -m backtest run` judges a checkpoint."""
    config = inputs.evaluation_config(experiment.market, fees_bps=None, deterministic=False)
    prepared, _ = inputs.prepare(experiment, "test", None, config)
    policy = PeerPolicy(model, len(experiment.market.actions.levels))
    finished = run_policy(policy, prepared.market, config, seeds=range(FILL_SEEDS))
    subject = report.fingerprint([job.name, job.overrides, job.seconds])
    evaluation = examine(
        finished,
        Terms(
            market=prepared.market,
            config=config,
            history_close=prepared.history_close,
            stretch=Stretch.of(prepared.market),
        ),
        identity=Identity(
            key=report.fingerprint([subject, FILL_SEEDS]),
            subject=subject,
            dataset=report.dataset_fingerprint(prepared.bars_fingerprint, finished.market.timestamp),
            split="test",
        ),
        ledger=TrialsLedger(trials),
        created="",
    )
    timing = evaluation.random_timing
    return {
        "metrics": _plain(evaluation.metrics),
        "baselines": {name: {"metrics": _plain(m)} for name, m in evaluation.baseline_metrics.items()},
        "fill_band": {name: vars(band) for name, band in evaluation.fill_band.items()},
        "significance": {
            "random_timing": None if timing is None else {"p_value": timing.p_value},
            "expected_maximum_daily_sharpe": evaluation.evidence.expected_maximum,
        },
        "trials": {"trials": evaluation.trials.trials},
        "market": {"days_per_year": finished.market.days_per_year},
    }


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"value": metric.value, "ci": metric.ci} for name, metric in metrics.items()}


def _vector(experiment: Experiment, envs: MarketEnvs, seed: int) -> Any:
    """A stable-baselines3 vector environment over the training split."""
    from benchmarks.sb3 import VectorAdapter

    return VectorAdapter(MarketVectorEnv(envs.markets("train"), experiment.market, num_envs=ENVS, seed=seed), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True)
    parser.add_argument("--trials", type=Path, required=True, help="ledger of evaluations")
    options = parser.parse_args()
    try:
        import stable_baselines3  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit(MISSING) from None
    job = json.loads(options.job)
    result = train(Job(**{**job, "overrides": tuple(job["overrides"])}), options.trials)
    sys.stdout.write(report.encode_json(result).decode())


if __name__ == "__main__":
    main()
