"""How well and how fast the agent learns, on problems whose best possible score is known, beside PPO and DQN.

    python -m benchmarks.learning                              every verification market, 3 seeds, one agent: smu0
    python -m benchmarks.learning regime_base --agents smu0 ppo dqn --peer-python ~/.venv-peers/bin/python
    python -m benchmarks.learning regime_base --agents smu0 gumbel8 no_floor      (variants: --list shows all)
    python -m benchmarks.learning --quick

A score is (agent − flat) / (optimum − flat) on common random numbers (market_env/analytic.py); CartPole is scored by
its mean return. One configuration serves every market and setting. PPO and DQN are those of stable-baselines3, on the
same environments and the same discount, each in a process of its own; every process has one thread. Seconds are
wall-clock and include the evaluations that draw the curve, for all agents alike.

Each run is kept as a JSON file under --out, so that an interrupted benchmark goes on where it stopped, and
`python -m benchmarks.learning_page` draws table and figure from what is there.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]

# A horizon of 20 steps. Policies that are optimal under it earn at least 0.992 of what is earned without a discount on
# every market here, and values have half the size and the age they have at 0.97 (docs/decisions/0081).
DISCOUNT = 0.95
EVALUATION_EPISODES, EVALUATION_STEPS = 64, 256  # of each point of a curve
SCORE_EPISODES, SCORE_STEPS = 512, 512  # of the final score
ACTING_EPISODES = 256  # of one model under other searches
DECAY = 0.035  # updates for each environment step of the budget over which the learning rate falls
TARGET = 0.95

CONFIG: Json = {
    "discount": DISCOUNT,
    "network": {"width": 128, "encoder_width": 64, "latent": 64, "hidden": 128},
    "search": {
        "simulations": 32,
        # Wide, so that visits stay spread while values are still guesses: with 1.0 learning begins later, with 0.3 not
        # at all in the same time (docs/methods.md).
        "min_q_range": 3.0,
        # A mean over few visits is that of the likeliest outcomes only, here mostly noise (docs/decisions/0082).
        "chance_values": "expected",
        "threads": 1,
        # Three actions: with the usual noise (0.3, 0.25) a side of the trade can die out for good (docs/methods.md).
        "dirichlet_alpha": 1.0,
        "dirichlet_fraction": 0.5,
    },
    "self_play": {"num_envs": 64},
    # What is done at random costs what a trade costs, and would be learnt as the price of holding a position: returns
    # are corrected for it, and exploration need not fade. A window that grows averages the noise of the returns.
    "replay": {
        "min_steps": 4000,
        "n_step": 5,
        "capacity_steps": 300_000,
        "window_fraction": 0.5,
        "correct_exploration": True,
        "counterfactual_ratio": 0.5,
    },
    "learner": {
        "batch_size": 128,
        "learning_rate": 3e-3,
        "decay_updates": 8400,
        "updates_per_env_step": 0.04,
    },
    "training": {
        "env_steps": 240_000,
        "evaluate_every": 500,
        "checkpoint_every": 1_000_000,  # runs here are not resumed
        "evaluation_episodes": EVALUATION_EPISODES,
    },
}


@dataclass(frozen=True)
class Setting:
    """A problem. market: class in market_env.analytic, or a Gymnasium id. minutes, env_steps: budget of its training,
    whichever ends first; agent: what its agent is configured with beside CONFIG, where the problem is no market."""

    market: str
    parameters: Json = field(default_factory=dict)
    minutes: float = 5.0
    env_steps: int = 240_000
    agent: Json = field(default_factory=dict)
    acting: bool = False  # score the trained model under other searches too (ACTING)

    @property
    def is_market(self) -> bool:
        """Whether the optimum is known."""
        return not self.agent

    @property
    def budget(self) -> Json:
        """The part of the configuration that goes with the budget."""
        return {
            "training": {"env_steps": self.env_steps},
            "learner": {"decay_updates": round(DECAY * self.env_steps)},
        }


SETTINGS = {
    "regime_base": Setting("Regime", {"drift": 0.3, "switch": 0.02, "cost": 0.5}, acting=True),
    "regime_weak": Setting("Regime", {"drift": 0.2, "switch": 0.02, "cost": 0.5}, minutes=10, env_steps=720_000),
    "regime_dear": Setting("Regime", {"drift": 0.3, "switch": 0.02, "cost": 1.0}, minutes=10),
    "regime_slow": Setting("Regime", {"drift": 0.2, "switch": 0.01, "cost": 1.0}, minutes=10, env_steps=480_000),
    "meanreversion": Setting("MeanReversion", minutes=10),
    "momentum": Setting("Momentum", minutes=10),
    "martingale": Setting("Martingale", env_steps=120_000),
    "leak": Setting("Leak", env_steps=120_000),
    "knownmoves": Setting("KnownMoves", {"moves": 6}, env_steps=120_000),
    "barrier": Setting("Barrier", env_steps=120_000),
    "cartpole": Setting(
        "CartPole-v1",
        minutes=10,
        # What `python -m agent train --env CartPole-v1` runs (configs/gymnasium_experiment.py).
        agent={
            "discount": 0.99,
            "network": {"support_limit": 110.0, "codes": 4},
            "search": {
                "simulations": 16,
                "min_q_range": 0.0,
                "chance_values": "mean",
                "dirichlet_fraction": 0.25,
                "dirichlet_alpha": 0.5,
            },
            "self_play": {"num_envs": 16},
            "replay": {
                "min_steps": 2000,
                "correct_exploration": False,
                "n_step": 50,
                "td_lambda": 0.97,
                "capacity_steps": 50_000,
                "window_fraction": 0.0,
                "counterfactual_ratio": 0.0,
            },
            "learner": {
                "learning_rate": 1e-3,
                "learning_rate_final": 1e-4,
                "updates_per_env_step": 0.1,
                "decay_updates": 8000,
            },
            "training": {"env_steps": 80_000, "evaluate_every": 1000, "evaluation_episodes": 16},
        },
    ),
}

# What one idea is worth: the same agent but for it.
VARIANTS: dict[str, Json] = {
    "smu0": {},
    **{f"puct{n}": {"search": {"simulations": n}} for n in (8, 16, 50)},
    # A Gumbel root draws its actions otherwise than by visits, so there is nothing to correct by.
    **{
        f"gumbel{n}": {"search": {"simulations": n, "root": "gumbel"}, "replay": {"correct_exploration": False}}
        for n in (8, 16, 50)
    },
    "no_floor": {"search": {"min_q_range": 0.0}},
    "low_floor": {"search": {"min_q_range": 1.0}},
    "floor2": {"search": {"min_q_range": 2.0}},
    "mean_values": {"search": {"chance_values": "mean"}},
    "codes1": {"network": {"codes": 1}},
    "codes8": {"network": {"codes": 8}},
    "reanalyse": {"replay": {"reanalyse_ratio": 0.5}},
    "counterfactual": {"replay": {"counterfactual_ratio": 1.0}},
    "no_counterfactual": {"replay": {"counterfactual_ratio": 0.0}},
    "consistency": {"learner": {"consistency_weight": 1.0}},
    "prioritised": {"replay": {"prioritised": True}},
    "commitment_0.25": {"learner": {"commitment_weight": 0.25}},
    "uncorrected": {"replay": {"correct_exploration": False}},
    "kept_actions": {"replay": {"counterfactual_hold": 8}},
    "short_window": {"replay": {"capacity_steps": 30_000, "window_fraction": 0.0}},
    "long_discount": {"discount": 0.97},
    "averaged": {"learner": {"average": 0.99}},
    "little_noise": {"search": {"dirichlet_fraction": 0.25, "dirichlet_alpha": 0.3}},
}
PEERS = ("ppo", "dqn")
# One trained model, other searches when it acts: what planning is worth at decision time, and how much of it.
ACTING: dict[str, Json] = {
    "prior": {"simulations": 0},
    **{f"puct{n}": {"simulations": n} for n in (8, 16, 50)},
    **{f"gumbel{n}": {"simulations": n, "root": "gumbel"} for n in (8, 16, 50)},
}


# --- one run -------------------------------------------------------------------------------------------------------


def merged(base: Json, *changes: Json) -> Json:
    """`base` with the changes laid over it, section by section."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for change in changes:
        for key, value in change.items():
            result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return result


class Verification:
    """An `agent.train.EnvFactory` of one verification market."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def train(self, num_envs: int, seed: int) -> Any:
        from market_env.analytic_env import make_vector_env

        return make_vector_env(self.setting.market, num_envs, seed=seed, **self.setting.parameters)

    def validation(self, num_envs: int, seed: int) -> Any:
        from market_env.analytic_env import make_vector_env

        parameters = {**self.setting.parameters, "horizon": EVALUATION_STEPS}
        return make_vector_env(self.setting.market, num_envs, seed=seed, **parameters)


class Registered:
    """An `agent.train.EnvFactory` of a Gymnasium id."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def train(self, num_envs: int, seed: int) -> Any:
        import gymnasium

        return gymnasium.make_vec(self.setting.market, num_envs=num_envs, vectorization_mode="sync")

    def validation(self, num_envs: int, seed: int) -> Any:
        return self.train(num_envs, seed)


def greedy(planner: Any, simulations: int | None = None) -> Any:
    """The planner's best action [B] for each of a market's observations [B, D]."""

    def act(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        search, _ = planner.plan({"observation": observations}, action_mask=None, simulations=simulations)
        return np.asarray(search.action, np.int64)

    return act


def learn(setting: Setting, variant: Json, *, seed: int, minutes: float) -> Json:
    """Train smu0 once. Returns the final score with its standard error, and the curve."""
    from agent.config import AgentConfig
    from agent.evaluation import evaluate
    from agent.planner import Planner
    from agent.train import RunSettings, Trainer

    config = AgentConfig.model_validate(merged(CONFIG, setting.budget, setting.agent, variant))
    envs = Verification(setting) if setting.is_market else Registered(setting)
    with tempfile.TemporaryDirectory() as directory:
        settings = RunSettings(directory=Path(directory), seed=seed, code_version="benchmark", minutes=minutes)
        trainer = Trainer(config, envs, settings)
        trainer.run()
        rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    planner = Planner(trainer.learner.acting, config.search)
    curve = [
        {"env_steps": row["env_steps"], "seconds": row["seconds"], "score": row["score"], "prior": row["prior_score"]}
        for row in rows
    ]
    result: Json = {
        "seconds": trainer.seconds,
        "env_steps": trainer.actor.env_steps,
        "counterfactual_steps": rows[-1]["counterfactual_steps"],
        "updates": trainer.learner.updates,
        "codes": rows[-1]["model/code_perplexity"],
        "outcomes": rows[-1]["model/chance_perplexity"],
        "action_changes": rows[-1]["action_changes"],
        "value_slope": rows[-1]["value/slope"],
    }
    if setting.is_market:
        result |= score(setting, greedy(planner), seed)
        result["prior_score"] = score(setting, greedy(planner, 0), seed)["score"]
        if setting.acting:
            result["acting"] = {}
            for name, change in ACTING.items():
                other = Planner(trainer.learner.acting, config.search.model_copy(update=change))
                result["acting"][name] = score(setting, greedy(other), seed, episodes=ACTING_EPISODES)
        return result | {"curve": relative(curve, setting, trainer.validation_seed)}
    final = evaluate(envs.validation(100, 0), planner, seed=10_000 + seed)
    prior = evaluate(envs.validation(100, 0), planner, seed=10_000 + seed, simulations=0)
    return result | {
        "score": final.score,
        "standard_error": final.standard_error,
        "prior_score": prior.score,
        "curve": curve,
    }


def score(
    setting: Setting,
    act: Callable[[NDArray[np.float32]], NDArray[np.int64]],
    seed: int,
    *,
    episodes: int = SCORE_EPISODES,
) -> Json:
    """The final score of a policy on a verification market."""
    from market_env.analytic import optimality, solve

    market = Verification(setting).train(1, 0).market
    final = optimality(market, act, solution=solve(market), episodes=episodes, steps=SCORE_STEPS, seed=10_000 + seed)
    return {
        "score": final.score,
        "standard_error": final.standard_error,
        "mean_reward": final.agent,
        "mean_reward_error": final.agent_error,
        "optimal_reward": final.optimal,
    }


def relative(curve: list[Json], setting: Setting, seed: int) -> list[Json]:
    """The curve as fractions of what the optimum earns on the same episodes."""
    from market_env.analytic import solve

    env = Verification(setting).validation(EVALUATION_EPISODES, seed)
    solution = solve(env.market)
    observations, _ = env.reset(seed=seed)
    best = 0.0
    for _ in range(EVALUATION_STEPS):
        observations, rewards, _, _, _ = env.step(solution.act(observations))
        best += float(rewards.mean())
    if solution.value <= 1e-6:
        return [{**point, "score": None} for point in curve]
    keys = [key for key in ("score", "prior") if key in curve[0]] if curve else []
    return [{**point, **{key: point[key] / best for key in keys}} for point in curve]


# --- many runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One agent on one setting with one seed."""

    agent: str
    setting: str
    seed: int
    minutes: float

    def file(self, out: Path) -> Path:
        """Where its result is kept."""
        return out / f"{self.setting}.{self.agent}.{self.seed}.json"


def run_job(job: Job, out: Path, peer_python: str | None, log: Path) -> Json | None:
    """Run a job in a process of its own, or take its result from an earlier run. None: the peer is missing."""
    file = job.file(out)
    if file.is_file():
        kept: Json = json.loads(file.read_text())
        return kept
    python = (peer_python or sys.executable) if job.agent in PEERS else sys.executable
    module = "benchmarks.learning_peers" if job.agent in PEERS else "benchmarks.learning"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [python, "-m", module, "--job", json.dumps(asdict(job))]
    with log.open("w") as errors:
        finished = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
    if finished.returncode == MISSING:
        return None
    if finished.returncode:
        raise RuntimeError(f"{job}: exit status {finished.returncode}; its messages are in {log}")
    result: Json = {**json.loads(finished.stdout.splitlines()[-1]), "job": asdict(job), "load": os.getloadavg()[0]}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result))
    temporary.replace(file)
    return result


MISSING = 77  # exit status of a peer that is not installed


def reached(run: Json, what: str) -> float | None:
    """Where a curve first shows the target score."""
    for point in run["curve"]:
        if point["score"] is not None and point["score"] >= TARGET:
            value: float = point[what]
            return value
    return None


def metrics_of(setting: str, agent: str, runs: Sequence[Json]) -> Json:
    """What the runs of one agent on one setting say, by metric name."""
    prefix = "" if agent == "smu0" else f"{agent}_"
    scores = [run["score"] for run in runs if run["score"] is not None]
    metrics: Json = {}
    if scores:
        spread = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else runs[0]["standard_error"]
        metrics[f"{prefix}score_{setting}"] = _metric(scores, "1" if SETTINGS[setting].is_market else "return") | {
            "standard_error": spread
        }
    else:
        metrics[f"{prefix}reward_{setting}"] = _metric([run["mean_reward"] for run in runs], "per step")
    for what, unit in (("env_steps", "steps"), ("seconds", "s")):
        found = [at for at in (reached(run, what) for run in runs) if at is not None]
        metrics[f"{prefix}{what}_to_0.95_{setting}"] = _metric(found, unit) | {"reached": len(found)}
    for what in ("codes", "outcomes", "action_changes", "prior_score"):
        values = [run[what] for run in runs if run.get(what) is not None]
        if values:
            metrics[f"{prefix}{what}_{setting}"] = _metric(values, "1")
    return metrics


def _metric(values: Sequence[float], unit: str) -> Json:
    return {
        "value": statistics.mean(values) if values else None,
        "unit": unit,
        "low": min(values, default=None),
        "high": max(values, default=None),
        "runs": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[], metavar="SETTING", help="default: all; --list shows them")
    parser.add_argument("--agents", nargs="+", default=["smu0"], help="smu0, its variants, ppo, dqn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=None, help="training per run; default: the setting's own")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side; 1 leaves each the machine to itself")
    parser.add_argument("--peer-python", default=None, help="interpreter that has stable-baselines3; default: this one")
    parser.add_argument("--out", type=Path, default=None, help="keep runs here and go on from them")
    parser.add_argument("--quick", action="store_true", help="one market, one seed, half a minute: to see that it runs")
    parser.add_argument("--list", action="store_true", help="show settings and agents")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        job = Job(**json.loads(options.job))
        print(json.dumps(learn(SETTINGS[job.setting], VARIANTS[job.agent], seed=job.seed, minutes=job.minutes)))
        return
    if options.list:
        print("settings:", ", ".join(SETTINGS), "\nagents:  ", ", ".join((*VARIANTS, *PEERS)))
        return
    chosen = options.settings or (["momentum"] if options.quick else list(SETTINGS))
    for name, known in ((chosen, SETTINGS), (options.agents, (*VARIANTS, *PEERS))):
        unknown = [item for item in name if item not in known]
        if unknown:
            parser.error(f"unknown {', '.join(unknown)}; expected some of {', '.join(known)}")
    seeds = 1 if options.quick else options.seeds
    jobs = [
        Job(agent, setting, seed, _minutes(options, setting))
        for seed in range(seeds)
        for setting in chosen
        for agent in options.agents
    ]
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        results = dict(_run_all(jobs, out, options))
    output = report(results, options.agents, chosen)
    if options.json:
        print(json.dumps(output, indent=2))
        return
    print(output["machine"])
    for name, metric in output["metrics"].items():
        value = metric["value"]
        shown = "never" if value is None else f"{value:,.4g} ({metric['low']:,.4g} to {metric['high']:,.4g})"
        error = f" ± {metric['standard_error']:.3f}" if metric.get("standard_error") is not None else ""
        print(f"  {name:44} {shown}{error} {metric['unit']}, {metric['runs']} of {seeds} runs")
    for name in output["missing"]:
        print(f"  missing: {name} (install the benchmarks extra, or pass --peer-python)")


def _minutes(options: argparse.Namespace, setting: str) -> float:
    if options.minutes is not None:
        minutes: float = options.minutes
        return minutes
    return 0.5 if options.quick else SETTINGS[setting].minutes


def _run_all(jobs: Sequence[Job], out: Path, options: argparse.Namespace) -> Iterator[tuple[Job, Json | None]]:
    with ThreadPoolExecutor(options.workers) as pool:
        pending = {
            pool.submit(run_job, job, out, options.peer_python, out / f"{job.setting}.{job.agent}.{job.seed}.log"): job
            for job in jobs
        }
        for done, future in enumerate(as_completed(pending), start=1):
            job, result = pending[future], future.result()
            shown = "missing" if result is None else f"score {result['score']}, {result['seconds']:.0f} s"
            name = f"{job.setting} {job.agent} seed {job.seed}"
            print(f"[{done}/{len(jobs)}] {name}: {shown}", file=sys.stderr, flush=True)
            yield job, result


def report(results: dict[Job, Json | None], agents: Sequence[str], settings: Sequence[str]) -> Json:
    """Everything as one object (architecture.md, "Benchmarks")."""
    metrics: Json = {}
    for setting in settings:
        for agent in agents:
            runs = [r for job, r in results.items() if r is not None and (job.setting, job.agent) == (setting, agent)]
            if runs:
                metrics |= metrics_of(setting, agent, runs)
    ratios = {}
    for setting in settings:
        for peer in (agent for agent in agents if agent != "smu0"):
            for what in ("env_steps", "seconds"):
                mine = metrics.get(f"{what}_to_0.95_{setting}", {}).get("value")
                theirs = metrics.get(f"{peer}_{what}_to_0.95_{setting}", {}).get("value")
                if mine and theirs:
                    ratios[f"{what}_to_0.95_vs_{peer}_{setting}"] = theirs / mine
    return {
        "benchmark": "learning",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: _version(name) for name in ("smu0", "torch", "numba", "stable-baselines3")},
        "metrics": metrics,
        "ratios": ratios,
        "missing": sorted({job.agent for job, result in results.items() if result is None}),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed here"


if __name__ == "__main__":
    main()
