"""python -m agent: train, tune, evaluate, inspect, play, record.

Here the agent meets the market, or any Gymnasium environment: this file wires what the packages themselves keep apart.
"""

import json
import shutil
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from rich.console import Console
from rich.table import Table

from agent.checkpoint import CheckpointError, CheckpointMetadata, CheckpointPolicy, load_policy, read_metadata
from agent.demonstrations import record_episodes
from agent.distributed import Cluster, DistributedTrainer, actors_of, require_ray
from agent.evaluation import Evaluation
from agent.evaluation import evaluate as evaluate_policy
from agent.planner import Planner
from agent.play import from_keyboard, from_planner, in_turns
from agent.search_tree import ActionName, draw
from agent.spaces import AdaptedVectorEnv, VectorEnv, action_masks, as_observations, player_count
from agent.train import Trainer, decoder
from configs.checkpoints import find_checkpoint
from configs.environments import MarketEnvs
from configs.experiment import ExperimentError, Split
from configs.gymnasium_experiment import AnyExperiment, GymnasiumExperiment, experiment_for, load_any, parse_any
from configs.trades import TradesPlayer, read_trades
from configs.training import TrialTrainer, prepare
from configs.version import code_version
from data.commandline import JsonOption, make_app, print_json, run

RUNS = Path("var/runs")

app = make_app("Train Stochastic MuZero agents and look into them.")


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="experiment YAML; not needed with --env or --resume")] = None,
    env: Annotated[str | None, typer.Option("--env", metavar="ID", help="any Gymnasium environment instead")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, KEY=VALUE; repeatable")] = None,
    resume: Annotated[str | None, typer.Option(help="continue this run (its name or directory)")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="pause after this many minutes")] = None,
    run_name: Annotated[str | None, typer.Option("--run", help="name of the run; default: experiment and time")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="replace a run of the same name")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|local|ADDRESS",
            help="on many processes: local starts Ray here, auto joins a cluster that runs (else local), or HOST:PORT",
        ),
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="--ray: self-play actors; default: free processors")] = None,
    learners: Annotated[int, typer.Option(min=1, help="--ray: processes that share every batch (DDP)")] = 1,
    json_output: JsonOption = False,
) -> None:
    """Train an agent on historical bars, or on any Gymnasium environment.

    Example: python -m agent train configs/btc_1h.yaml --set agent.search.simulations=32 --minutes 30

    Example: python -m agent train --env CartPole-v1 --set agent.network.backbone=lstm

    Example: python -m agent train configs/btc_1h.yaml --ray local --actors 4
    """
    if ray is None and (actors is not None or learners != 1):
        raise ExperimentError("--actors and --learners: expected --ray too; try --ray local")
    if ray is not None:
        require_ray()
    if resume is not None:
        directory = _run_directory(resume)
        if env is not None:
            raise ExperimentError(f"--resume {resume} --env {env}: a run keeps its environment. Leave out --env")
        experiment = _resumed_experiment(directory, config, set_ or [])
    elif (config is None) == (env is None):
        raise ExperimentError(
            "train: expected one of an experiment YAML, --env ID and --resume RUN; try configs/sp500_1d.yaml or "
            "--env CartPole-v1"
        )
    else:
        experiment = experiment_for(env, set_ or []) if env is not None else load_any(config or "", set_ or [])
        directory = RUNS / (run_name or f"{experiment.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
        _make_run_directory(directory, experiment, fresh=fresh)
    agent, envs, settings = prepare(experiment, directory, minutes=minutes)
    if ray is None:
        single = Trainer(agent, envs, settings)
        if resume is not None:
            single.resume()
        result = single.run()
        best_score, env_steps, updates = single.best_score, single.actor.env_steps, single.learner.updates
        seconds, lost = single.seconds, {}
    else:
        if resume is not None and actors is None:
            actors = actors_of(directory)
        many = DistributedTrainer(agent, envs, settings, Cluster(address=ray, actors=actors, learners=learners))
        # What a scheduler sends before it takes a machine away: time enough to save.
        signal.signal(signal.SIGTERM, lambda number, frame: many.stop())
        try:
            if resume is not None:
                many.resume()
            result = many.run()
        finally:
            many.close()
        best_score, env_steps, updates = many.best_score, many.env_steps, many.updates
        seconds, lost = many.seconds, many.deaths
    best = directory / "checkpoints" / "best"
    summary = {
        "run": str(directory),
        "best": str(best),
        "best_score": best_score,
        "last_score": None if result is None else result.score,
        "env_steps": env_steps,
        "updates": updates,
        "seconds": round(seconds, 1),
        "lost_processes": sum(lost.values()),
        "finished": env_steps >= experiment.agent.training.env_steps,
    }
    if json_output:
        print_json(summary)
        return
    console = Console()
    console.print(f"run      {directory}", highlight=False)
    console.print(f"best     {best}  (validation return {best_score})", highlight=False)
    if not summary["finished"]:
        where = "" if ray is None else f" --ray {ray}"
        console.print(f"continue python -m agent train --resume {directory}{where}", highlight=False)
    console.print(f"curves   tensorboard --logdir {directory / 'tensorboard'}", highlight=False)
    if isinstance(experiment, GymnasiumExperiment):
        console.print(f"evaluate python -m agent evaluate {best}", highlight=False)
    else:
        console.print(f"backtest python -m backtest run --checkpoint {best}", highlight=False)


@app.command()
def tune(
    config: Annotated[Path | None, typer.Argument(help="experiment YAML; not needed with --env")] = None,
    env: Annotated[str | None, typer.Option("--env", metavar="ID", help="any Gymnasium environment instead")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, KEY=VALUE; repeatable")] = None,
    space: Annotated[Path | None, typer.Option(help="YAML of what to try; default: five settings that matter")] = None,
    trials: Annotated[int, typer.Option(min=2, help="how many, the unchanged configuration included")] = 16,
    workers: Annotated[int | None, typer.Option(min=1, help="trials at a time; default: one per processor")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="stop after this many minutes")] = None,
    ray: Annotated[str, typer.Option(metavar="auto|local|ADDRESS", help="where the trials run")] = "local",
    run_name: Annotated[str | None, typer.Option("--run", help="name of the run; default: experiment and time")] = None,
    resume: Annotated[str | None, typer.Option(help="continue this tuning run (its directory)")] = None,
    json_output: JsonOption = False,
) -> None:
    """Search for better settings with Ray Tune: many short runs, the worse half stopped early (ASHA).

    Example: python -m agent tune configs/sp500_1d.yaml --trials 16 --minutes 60

    A space is dotted keys with choices or a range:

    {"agent.learner.learning_rate": {low: 1e-4, high: 1e-2, log: true}, "agent.search.simulations": [16, 32]}
    """
    require_ray()
    from agent.tune import DEFAULT_SPACE, TuneSettings, parse_space
    from agent.tune import tune as search

    if resume is not None:
        if config is not None or env is not None or set_ or space is not None:
            raise ExperimentError(f"--resume {resume}: a tuning run keeps its experiment and space. Leave them out")
        directory = Path(resume)
        try:
            kept = yaml.safe_load((directory / "tuning.yaml").read_text())
        except FileNotFoundError as error:
            raise ExperimentError(f"--resume {resume}: expected a tuning run (tuning.yaml), found none") from error
    else:
        if (config is None) == (env is None):
            raise ExperimentError("tune: expected one of an experiment YAML, --env ID and --resume DIRECTORY")
        experiment = experiment_for(env, set_ or []) if env is not None else load_any(config or "", set_ or [])
        directory = RUNS / (run_name or f"{experiment.name}-tune-{datetime.now(UTC):%Y%m%d-%H%M%S}")
        if directory.exists():
            raise ExperimentError(
                f"run {directory} exists. Continue it with --resume {directory}, or choose another --run"
            )
        dimensions = DEFAULT_SPACE if space is None else parse_space(yaml.safe_load(space.read_text()), str(space))
        kept = {
            "experiment": experiment.dump(),
            "space": {key: d.model_dump(mode="json", exclude_defaults=True) for key, d in dimensions.items()},
            "trials": trials,
            "workers": workers,
        }
        directory.mkdir(parents=True)
        (directory / "tuning.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    experiment = parse_any(kept["experiment"], str(directory / "tuning.yaml"))
    report = search(
        kept["experiment"],
        parse_space(kept["space"], str(directory / "tuning.yaml")),
        TrialTrainer(kept["experiment"]),
        TuneSettings(directory, trials=kept["trials"], seed=experiment.seed, workers=kept["workers"], minutes=minutes),
        Cluster(address=ray),
        env_steps=experiment.agent.training.env_steps,
        resume=resume is not None,
    )
    if json_output:
        print_json(report)
        return
    _print_rows(
        f"best of {len(report['trials'])} trials (validation return, mean of the last evaluations)",
        {
            "score": f"{report['best']['score']:.4g}",
            "unchanged": "not evaluated" if report["unchanged"] is None else f"{report['unchanged']['score']:.4g}",
            **report["best"]["values"],
            "config": report["config"],
            "all trials": str(directory / "report.md"),
        },
    )


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="checkpoint directory, or the name of a run or of a bundled model")],
    split: Annotated[Split, typer.Option(help="which part of the bars; other environments have none")] = "validation",
    episodes: Annotated[int, typer.Option(min=1, help="episodes, each with a seed (random fills) of its own")] = 8,
    simulations: Annotated[int | None, typer.Option(min=0, help="search budget; 0 acts by the prior")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    report: Annotated[Path | None, typer.Option(help="write training and evaluation as a page (Markdown) here")] = None,
    json_output: JsonOption = False,
) -> None:
    """Play greedy episodes and report the return (on bars in units of the reward: percent log return).

    Example: python -m agent evaluate var/runs/demo/checkpoints/best --simulations 0

    Example: python -m agent evaluate cartpole --episodes 100 --report report.md
    """
    place = find_checkpoint(checkpoint)
    metadata = read_metadata(place)
    experiment = parse_any(metadata.experiment, str(place))
    env = _evaluation_env(experiment, split, episodes, seed)
    planner = Planner(load_policy(place).model, metadata.agent.search, decode=decoder(env))
    started = time.perf_counter()
    result = evaluate_policy(env, planner, seed=seed, simulations=simulations)
    seconds = time.perf_counter() - started
    played = {"environment": experiment.env.id} if isinstance(experiment, GymnasiumExperiment) else {"split": split}
    row = {
        "checkpoint": str(place),
        **played,
        "episodes": episodes,
        "simulations": metadata.agent.search.simulations if simulations is None else simulations,
        "score": result.score,
        "standard_error": result.standard_error,
        "lowest": float(result.returns.min()),
        "median": float(np.median(result.returns)),
        "highest": float(result.returns.max()),
        "mean_length": float(result.lengths.mean()),
        "action_share": [round(float(share), 4) for share in result.action_share],
        "steps_per_s": round(float(result.lengths.sum()) / seconds),
    }
    if report is not None:
        report.write_text(_report_page(metadata, place, result, row))
    if json_output:
        print_json(row)
    else:
        _print_rows(f"{next(iter(played.values()))}: return per episode", row)


def _evaluation_env(experiment: AnyExperiment, split: Split, episodes: int, seed: int) -> VectorEnv:
    if isinstance(experiment, GymnasiumExperiment):
        return experiment.environments().validation(episodes, seed)
    return MarketEnvs(experiment).evaluation(split, episodes, seed)


def _report_page(metadata: CheckpointMetadata, place: Path, result: Evaluation, row: dict[str, Any]) -> str:
    """How a checkpoint was trained, as far as its run tells, and how it did now."""
    counters = metadata.counters
    lines = [
        f"# {metadata.experiment.get('name', place.name)}",
        "",
        f"Trained for {counters.env_steps:,} environment steps and {counters.updates:,} updates in "
        f"{counters.seconds:,.0f} s; score of its validation {metadata.score}. Code version {metadata.code_version}.",
        "",
        "| evaluation | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value} |" for name, value in row.items() if name != "checkpoint"),
        "",
        "Returns of the episodes, sorted: " + ", ".join(f"{value:g}" for value in np.sort(result.returns)) + ".",
    ]
    curve = place.resolve().parents[1] / "metrics.jsonl"  # of the run that this is a checkpoint of
    if curve.is_file():
        points = [json.loads(line) for line in curve.read_text().splitlines()]
        lines += ["", "| env steps | seconds | score | by the prior | self-play | loss |", "|---|---|---|---|---|---|"]
        for point in points:
            own = "–" if point["self_play_return"] is None else f"{point['self_play_return']:.4g}"
            lines.append(
                f"| {point['env_steps']:,} | {point['seconds']:.0f} | {point['score']:.4g} | "
                f"{point['prior_score']:.4g} | {own} | {point['loss/total']:.3f} |"
            )
    return "\n".join(lines) + "\n"


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="checkpoint directory, or the name of a run or of a bundled model")],
    tree: Annotated[bool, typer.Option("--tree", help="draw the search of one decision instead")] = False,
    split: Annotated[Split, typer.Option(help="--tree: which part of the bars")] = "validation",
    step: Annotated[int, typer.Option(min=0, help="--tree: steps (bars) after the first decision")] = 0,
    simulations: Annotated[int | None, typer.Option(min=1, help="--tree: search budget")] = None,
    depth: Annotated[int, typer.Option(min=1, help="--tree: edges drawn; a bar is two")] = 4,
    json_output: JsonOption = False,
) -> None:
    """Show a checkpoint: parameters, how far it was trained, what its chance codes have meant; or how it decides.

    Example: python -m agent inspect var/runs/demo/checkpoints/best --tree --step 100
    """
    place = find_checkpoint(checkpoint)
    policy = load_policy(place)
    metadata = policy.metadata
    if tree:
        _draw_decision(place, policy, split, step, simulations, depth)
        return
    parameters = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (
            ("representation", policy.model.representation),
            ("core", policy.model.core),
            ("encoder", policy.model.encoder),
        )
    }
    if json_output:
        print_json(
            {"parameters": parameters, "metadata": metadata.model_dump(mode="json", exclude={"state", "experiment"})}
        )
        return
    _print_rows(
        str(place),
        {
            "experiment": metadata.experiment.get("name", "unknown"),
            "code version": metadata.code_version,
            "env steps": f"{metadata.counters.env_steps:,}",
            "updates": f"{metadata.counters.updates:,}",
            "seconds": f"{metadata.counters.seconds:,.0f}",
            "validation return": metadata.score,
            **{f"parameters, {name}": f"{count:,}" for name, count in parameters.items()},
        },
    )
    if not metadata.code_statistics:
        return
    table = Table(title="what each chance code has meant (next-bar log return)", title_justify="left")
    for heading in ("code", "share", "mean", "5%", "50%", "95%"):
        table.add_column(heading, justify="right")
    total = sum(code.count for code in metadata.code_statistics)
    for code in sorted(metadata.code_statistics, key=lambda code: -code.count):
        quantiles = [f"{code.quantiles[q]:+.3%}" for q in ("0.05", "0.5", "0.95")]
        table.add_row(str(code.code), f"{code.count / total:.1%}", f"{code.mean:+.3%}", *quantiles)
    Console().print(table)


def _draw_decision(
    checkpoint: Path, policy: CheckpointPolicy, split: Split, step: int, simulations: int | None, depth: int
) -> None:
    """Play the split up to the step, greedily, and draw the search that decides there."""
    metadata = policy.metadata
    experiment = parse_any(metadata.experiment, str(checkpoint))
    env = _evaluation_env(experiment, split, 1, experiment.seed)
    planner = Planner(policy.model, metadata.agent.search, decode=decoder(env))
    where = experiment.env.id if isinstance(experiment, GymnasiumExperiment) else split
    observation, infos = env.reset(seed=experiment.seed)
    for bar in range(step + 1):
        mask = action_masks(infos, 1, policy.num_actions)
        last = bar == step
        result, _ = planner.plan(
            as_observations(observation),
            action_mask=mask,
            simulations=simulations if last else None,
            row_by_row=True,
            with_tree=last,
        )
        if last:
            break
        observation, _, terminated, truncated, infos = env.step(result.chosen(result.action))
        if terminated[0] or truncated[0]:
            raise ValueError(f"--step {step}: expected less than the {bar + 1} steps of {where}")
    assert result.trees is not None, "the last search kept its tree"
    total = sum(code.count for code in metadata.code_statistics)
    names = {
        code.code: f"{code.count / total:.0%} of bars, {code.mean:+.2%}, 90% within {code.quantiles['0.05']:+.2%} to "
        f"{code.quantiles['0.95']:+.2%}"
        for code in metadata.code_statistics
    }
    console = Console()
    name = _action_name(experiment, env)
    taken = result.chosen(result.action)[0]
    console.print(f"{where}, step {step}: {name(taken if taken.ndim else int(taken))}", highlight=False)
    console.print(draw(result.trees, 0, action_names=name, code_names=names, depth=depth), highlight=False)


def _action_name(experiment: AnyExperiment, env: VectorEnv) -> ActionName:
    """What an action is called: a target position, or what the environment takes."""
    if not isinstance(experiment, GymnasiumExperiment):
        levels = experiment.market.actions.levels
        return lambda action: f"target {levels[action]:+g}" if isinstance(action, int) else f"targets {action}"
    if isinstance(env, AdaptedVectorEnv):
        return lambda action: f"action {env.actions.name(action)}"
    return lambda action: f"action {action}"


@app.command()
def play(
    checkpoint: Annotated[str, typer.Argument(help="checkpoint directory, or the name of a run or of a bundled model")],
    episodes: Annotated[int, typer.Option(min=1)] = 1,
    me: Annotated[int | None, typer.Option("--as", min=1, help="play this player (1, 2, …) yourself")] = None,
    simulations: Annotated[int | None, typer.Option(min=0, help="search budget; 0 acts by the prior")] = None,
    split: Annotated[Split, typer.Option(help="which part of the bars; other environments have none")] = "validation",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_steps: Annotated[int, typer.Option(min=1, help="stop after this many")] = 1_000,
    record_to: Annotated[Path | None, typer.Option("--out", help="keep what was played as demonstrations")] = None,
) -> None:
    """Watch a checkpoint play, or play against it where players take turns.

    Example: python -m agent play cartpole --max-steps 20

    Example: python -m agent play var/runs/tictactoe --as 2
    """
    place = find_checkpoint(checkpoint)
    metadata = read_metadata(place)
    experiment = parse_any(metadata.experiment, str(place))
    env = _text_env(experiment, split, seed)
    planner = Planner(load_policy(place).model, metadata.agent.search, decode=decoder(env))
    players = player_count(env)
    if me is not None and me > players:
        raise ValueError(f"--as {me}: this is played by {players}; expected at most that. Leave out --as to watch")
    choose = from_planner(env, planner, simulations=simulations, write=typer.echo)
    if me is not None:
        person = from_keyboard(env, read=_ask, write=typer.echo)
        choose = (
            in_turns([person if player == me - 1 else choose for player in range(players)]) if players > 1 else person
        )
    played = record_episodes(
        env, choose, episodes=episodes, seed=seed, max_steps=max_steps, source={"checkpoint": str(place), "person": me}
    )
    for number, result in enumerate(played.episode_returns(), start=1):
        whose = " for player 1" if players > 1 else ""
        typer.echo(f"episode {number}: return {result:+.4g}{whose}")
    if record_to is not None:
        played.save(record_to)
        typer.echo(f"kept {played.steps} steps in {record_to}")


@app.command()
def record(
    config: Annotated[Path | None, typer.Argument(help="experiment YAML; not needed with --env")] = None,
    env: Annotated[str | None, typer.Option("--env", metavar="ID", help="any Gymnasium environment instead")] = None,
    out: Annotated[Path, typer.Option("--out", help="file of demonstrations to write")] = Path("demo.safetensors"),
    trades: Annotated[
        Path | None, typer.Option(help="CSV of trades instead of the keyboard (docs/features.md)")
    ] = None,
    capital: Annotated[float | None, typer.Option(min=0, help="--trades with quantities: equity before them")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, KEY=VALUE; repeatable")] = None,
    episodes: Annotated[int, typer.Option(min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_output: JsonOption = False,
) -> None:
    """Record episodes to learn from: play in the terminal, or import a CSV of trades.

    Example: python -m agent record --env CartPole-v1 --episodes 3 --out play.safetensors

    Example: python -m agent record configs/btc_1h.yaml --trades trades.csv --out mine.safetensors

    Then: python -m agent train configs/btc_1h.yaml --set agent.replay.demonstrations=mine.safetensors
    """
    if (config is None) == (env is None):
        raise ExperimentError("record: expected one of an experiment YAML and --env ID; try --env CartPole-v1")
    experiment = experiment_for(env, set_ or []) if env is not None else load_any(config or "", set_ or [])
    source: dict[str, Any] = {"experiment": experiment.name, "code_version": code_version()}
    player: TradesPlayer | None = None
    if isinstance(experiment, GymnasiumExperiment):
        if trades is not None:
            raise ExperimentError(f"--trades {trades}: trades belong to bars; expected an experiment YAML, found --env")
        made = _text_env(experiment, "train", seed)
        choose = from_keyboard(made, read=_ask, write=typer.echo)
    else:
        envs = MarketEnvs(experiment)
        markets, market = envs.markets("train"), experiment.market
        if len(markets) != 1:
            raise ExperimentError(
                f"{config}: expected one symbol to record on, found {len(markets)}. Say --set data.symbols=[SYMBOL]"
            )
        made = envs.evaluation("train", 1, seed)
        source["data_fingerprint"] = envs.data_fingerprint
        if trades is not None:
            equity = market.episode.initial_equity
            player = TradesPlayer(
                read_trades(trades), markets[0], made.grid, capital=capital or equity, initial_equity=equity
            )
            choose = player
        else:
            choose = from_keyboard(made, read=_ask, write=typer.echo, describe=_bar_line)
    recorded = record_episodes(made, choose, episodes=episodes, seed=seed, source=source)
    recorded.save(out)
    returns = recorded.episode_returns()
    row: dict[str, Any] = {
        "file": str(out),
        "episodes": recorded.episodes,
        "steps": recorded.steps,
        "mean_return": float(returns.mean()),
    }
    if player is not None:
        row |= {"trades_used": player.used, "largest_difference_to_grid": round(player.largest_difference, 4)}
    if json_output:
        print_json(row)
    else:
        _print_rows("recorded", row)


def _ask(prompt: str) -> str:
    return input(prompt)


def _bar_line(infos: dict[str, Any]) -> str:
    """What a person who trades bar by bar is shown."""
    when = datetime.fromtimestamp(int(infos["timestamp"][0]) / 1000, UTC)
    return f"{when:%F %R}  equity {infos['equity'][0]:,.2f}  exposure {infos['exposure'][0]:+.2f}"


def _text_env(experiment: AnyExperiment, split: Split, seed: int) -> VectorEnv:
    """One environment, drawn as text where it can be."""
    if not isinstance(experiment, GymnasiumExperiment):
        return MarketEnvs(experiment).evaluation(split, 1, seed)
    modes = experiment.environments().validation(1, seed).unwrapped.envs[0].metadata.get("render_modes", ())  # type: ignore[attr-defined]
    if "ansi" in modes and experiment.env.observe == "state":
        shown = experiment.env.model_copy(update={"kwargs": {**experiment.env.kwargs, "render_mode": "ansi"}})
        experiment = experiment.model_copy(update={"env": shown})
    return experiment.environments().validation(1, seed)


def _run_directory(name: str) -> Path:
    for candidate in (Path(name), RUNS / name):
        if (candidate / "config.resolved.yaml").is_file():
            return candidate
    known = ", ".join(sorted(path.name for path in RUNS.glob("*") if path.is_dir())) or "none"
    raise CheckpointError(f"--resume {name}: expected a run directory or name, found none. Runs in {RUNS}: {known}")


def _resumed_experiment(directory: Path, config: Path | None, overrides: list[str]) -> AnyExperiment:
    """The run's own experiment. Another one would silently make it a different run, so it is refused."""
    if config is not None or overrides:
        given = load_any(config, overrides) if config is not None else None
        saved = load_any(directory / "config.resolved.yaml")
        if overrides or given != saved:
            raise ExperimentError(
                f"--resume {directory}: a run continues with the configuration it began with. Leave out CONFIG "
                f"and --set, or start a new run"
            )
    return load_any(directory / "config.resolved.yaml")


def _make_run_directory(directory: Path, experiment: AnyExperiment, *, fresh: bool) -> None:
    if directory.exists():
        if not fresh:
            raise ExperimentError(
                f"run {directory} exists. Continue it with --resume {directory}, replace it with --fresh, or "
                f"choose another --run NAME"
            )
        if not (directory / "config.resolved.yaml").is_file():
            raise ExperimentError(f"--fresh: {directory} is not a run (no config.resolved.yaml); nothing was removed")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / "config.resolved.yaml").write_text(yaml.safe_dump(experiment.dump(), sort_keys=False))


def _print_rows(title: str, rows: dict[str, object]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    run(app, "python -m agent")
