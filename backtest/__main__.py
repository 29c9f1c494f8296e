"""python -m backtest: scores that can be trusted."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agent.checkpoint import load_policy, read_metadata
from agent.policy import Policy
from agent.train import RunSettings, Trainer
from backtest import compare as comparing
from backtest import inputs, lookahead, report
from backtest import optimality as verifying
from backtest import walk_forward as walking
from backtest.baselines import standard_baselines
from backtest.charts import label
from backtest.evaluation import Evaluation
from backtest.inputs import InputError, Prepared
from backtest.page import COMPARED, COMPARED_NAMES, number
from backtest.results import Run
from backtest.runner import Progress as Rows
from backtest.runner import Stretch, run_policy, run_series
from backtest.study import Identity, Model, Terms, examine, record_trial
from backtest.targets import SIZINGS, align, read_targets
from backtest.trials import LEDGER, TrialsLedger
from configs.checkpoints import find_checkpoint
from configs.environments import MarketEnvs
from configs.experiment import Experiment, load_experiment
from configs.version import code_version
from data.bars import Bars, concatenate
from data.commandline import JsonOption, make_app, print_json, run
from data.features import FeatureSet
from data.importer import FileFormat, FileReader, dataset_of_file_name
from data.samples import load_sample
from data.store import BarStore, DatasetKey
from data.timeframe import Timeframe
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.market import Market

OUT = Path("var/backtest")
GATE_FAILED, LEAK_FOUND = 1, 3
PRIOR_SEEDS = 5  # fill paths of the prior-only baseline: its curve needs a median, not a band
# What only says where output goes or how it is shown: not part of what decides a result.
SILENT_OPTIONS = {"--out", "--trials", "--threads", "--fail-under"}
SILENT_FLAGS = {"--json", "--debug"}

app = make_app("Score a trained agent, or targets decided elsewhere, on bars it has not seen.")


@app.callback()
def commands() -> None:
    """Score a trained agent, or targets decided elsewhere, on bars it has not seen."""


@dataclass(frozen=True)
class Finished:
    """A run with what the report needs to say about it."""

    run: Run
    prior: Run | None
    prepared: Prepared
    terms: Terms
    model: Model | None
    subject: str
    kind: str
    subject_fingerprint: str
    feature_fingerprint: str | None
    split: str
    simulations: int | None
    config: dict[str, Any]
    notes: list[str]


@app.command("run")
def run_command(
    checkpoint: Annotated[
        str | None, typer.Option(help="checkpoint directory, run directory or run name; default: the newest run")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="experiment YAML; default: the checkpoint's own")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test (default)")] = None,
    symbol: Annotated[str | None, typer.Option(help="which of the experiment's or the store's symbols")] = None,
    fill_seeds: Annotated[int | None, typer.Option(min=1, help="paths of random fills")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first fill path, the bootstrap and the shifts")] = 0,
    simulations: Annotated[int | None, typer.Option(min=0, help="search budget; 0 acts by the prior")] = None,
    fees_bps: Annotated[float | None, typer.Option(help="taker and maker fee, basis points")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="fill at the next open, fees the only cost")
    ] = False,
    equity: Annotated[float | None, typer.Option(help="initial equity, quote currency")] = None,
    guards: Annotated[
        bool, typer.Option("--guards", help="keep the experiment's guards, as the paper trader does (default: none)")
    ] = False,
    targets: Annotated[Path | None, typer.Option(help="CSV of timestamp,target instead of a checkpoint")] = None,
    sizing: Annotated[
        str, typer.Option(help="targets are: units | fraction (of equity) | allin (-1, 0, 1)")
    ] = "fraction",
    rebalance: Annotated[str, typer.Option(help="trade on flips of the target | always (every bar)")] = "flips",
    bars: Annotated[Path | None, typer.Option(help="CSV or Parquet of bars for --targets")] = None,
    timeframe: Annotated[str | None, typer.Option(help="of --bars or of the stored --symbol")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the report; default: under var/backtest")] = None,
    trials: Annotated[Path, typer.Option(help="ledger of evaluations")] = LEDGER,
    threads: Annotated[int, typer.Option(min=1, help="threads for the random-timing baseline")] = 1,
    fail_under: Annotated[
        list[str] | None, typer.Option(help="METRIC=VALUE; exit 1 if below or undefined; repeatable")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Trade a split with next-open stochastic fills and write report.html, report.json and the ledgers.

    Example: python -m backtest run --checkpoint var/runs/demo/checkpoints/best --fill-seeds 20 --fail-under
    sharpe_ci_low=0
    """
    gates = [parse_gate(text) for text in fail_under or []]
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if targets is not None:
        if checkpoint is not None or simulations is not None or guards:
            raise InputError(
                "--targets: expected no --checkpoint, --simulations or --guards beside it; targets are already decided."
            )
        finished = _run_targets(
            targets, config, split, symbol, fill_seeds, seed, fees_bps, deterministic, equity, sizing, rebalance,
            bars, timeframe, threads,
        )  # fmt: skip
    else:
        if bars is not None or timeframe is not None:
            raise InputError(
                "--bars and --timeframe: expected with --targets only; a checkpoint's bars come from its experiment."
            )
        finished = _run_checkpoint(
            checkpoint, config, split, symbol, fill_seeds, seed, simulations, fees_bps, deterministic, equity, threads,
            guarded=guards,
        )  # fmt: skip
    place = out or OUT / f"{finished.subject.replace('/', '-')}-{finished.split}"
    document = _judge_and_report(
        finished, seed=seed, created=created, trials=trials, place=place, json_output=json_output
    )
    failed = [text for text in (gate_failure(document, *gate) for gate in gates) if text is not None]
    for text in failed:
        print(f"gate failed: {text}", file=sys.stderr)
    if failed:
        raise typer.Exit(GATE_FAILED)


def _judge_and_report(
    finished: Finished,
    *,
    seed: int,
    created: str,
    trials: Path,
    place: Path,
    json_output: bool,
    bounds: Sequence[tuple[str, int, int]] | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run, write its artefacts, print it; returns the JSON report."""
    evaluation = examine(
        finished.run,
        finished.terms,
        identity=_identity(finished, seed),
        ledger=TrialsLedger(trials),
        created=created,
        prior=finished.prior,
        model=finished.model,
        warnings=[*finished.notes, *_market_notes(finished)],
        bounds=bounds,
        progress=_progress,
    )
    context = report.Context(
        subject=finished.subject,
        kind=finished.kind,
        split=finished.split,
        mode=finished.prepared.config.fills.mode,
        simulations=finished.simulations,
        fingerprints={
            "data": finished.prepared.bars_fingerprint,
            "config": report.fingerprint(finished.config),
            "targets" if finished.kind == "targets" else "checkpoint": finished.subject_fingerprint,
            "features": finished.feature_fingerprint,
            "code": report.code_fingerprint(),
        },
        seeds={"fill": list(finished.run.seeds), "bootstrap": seed, "random_timing": seed},
        arguments=meaningful_arguments(sys.argv[1:]),
        config=finished.config,
        created=created,
    )
    document = report.write_artefacts(place, evaluation, context)
    if json_output:
        print_json(document)
    else:
        _print_evaluation(evaluation, context, place)
    return document


def _market_notes(finished: Finished) -> list[str]:
    """What the reader must know of the market's data and fills."""
    notes = []
    fills = finished.prepared.config.fills
    if fills.mode == "stochastic" and not finished.prepared.market.has_volume:
        notes.append("These bars have no volume: the volume cap and price impact are off.")
    ambiguous = finished.run.ambiguous_bars
    if fills.order_type == "limit" and ambiguous:
        notes.append(
            f"{ambiguous} bars reached a limit price and the liquidation price; the liquidation is taken to come first."
        )
    return notes


def _identity(finished: Finished, seed: int) -> Identity:
    """What this evaluation is, for the trials ledger."""
    dataset = report.dataset_fingerprint(finished.prepared.bars_fingerprint, finished.run.market.timestamp)
    subject = report.fingerprint(
        [finished.subject_fingerprint, report.fingerprint(finished.config), finished.simulations]
    )
    return Identity(
        key=report.fingerprint([subject, dataset, finished.split, list(finished.run.seeds), seed]),
        subject=subject,
        dataset=dataset,
        split=finished.split,
    )


def _run_checkpoint(
    checkpoint: str | None,
    config: Path | None,
    split: str | None,
    symbol: str | None,
    fill_seeds: int | None,
    seed: int,
    simulations: int | None,
    fees_bps: float | None,
    deterministic: bool,
    equity: float | None,
    threads: int,
    *,
    name: str = "policy",
    with_prior: bool = True,
    guarded: bool = False,
) -> Finished:
    path = find_checkpoint(checkpoint)
    metadata = read_metadata(path)
    experiment = inputs.experiment_of(metadata, config, path)
    policy = inputs.policy_of(path)
    market_config = inputs.evaluation_config(
        experiment.market, fees_bps=fees_bps, deterministic=deterministic, equity=equity
    )
    chosen_split = inputs.checked_split(split or "test")
    ready, notes = inputs.prepare(experiment, chosen_split, symbol, market_config)
    if chosen_split == "train":
        notes.append(
            "This is the training split: the policy has seen these bars, so the figures say nothing about skill."
        )
    seeds = _seeds(fill_seeds or experiment.backtest.fill_seeds, seed, deterministic=deterministic)
    market = ready.market
    guards = experiment.guards if guarded else None
    rows = len(market) - market.first_decision
    with _progress(f"{inputs.checkpoint_name(path)} on {market.symbol}, {len(seeds)} fill paths", rows) as shown:
        finished = run_policy(
            policy, market, market_config, seeds=seeds, simulations=simulations, guards=guards, name=name,
            progress=shown,
        )  # fmt: skip
    if guards is not None:
        held_back = int(np.isnan(finished.accounts.target).sum())
        notes.append(f"Guards on: {held_back} of {finished.accounts.target.size} decisions were held back.")
    budget = 0 if finished.decisions is None else finished.decisions.simulations
    prior = None
    if with_prior and budget > 0:
        with _progress("its prior without search", rows) as shown:
            few = seeds[:PRIOR_SEEDS]
            prior = run_policy(
                policy, market, market_config, seeds=few, simulations=0, guards=guards, name="prior", progress=shown
            )
    return Finished(
        run=finished,
        prior=prior,
        prepared=ready,
        terms=Terms(
            market=market,
            config=market_config,
            history_close=ready.history_close,
            stretch=Stretch.of(market),
            seed=seed,
            threads=threads,
        ),
        model=inputs.model_of(policy, experiment),
        subject=inputs.checkpoint_name(path),
        kind="checkpoint",
        subject_fingerprint=inputs.checkpoint_fingerprint(metadata),
        feature_fingerprint=experiment.feature_set.fingerprint,
        split=chosen_split,
        simulations=budget,
        config={
            **experiment.dump(),
            "market": market_config.model_dump(mode="json"),
            **({} if guards is None else {"guarded": guards.model_dump(mode="json")}),
        },
        notes=notes,
    )


def _run_targets(
    targets: Path,
    config: Path | None,
    split: str | None,
    symbol: str | None,
    fill_seeds: int | None,
    seed: int,
    fees_bps: float | None,
    deterministic: bool,
    equity: float | None,
    sizing: str,
    rebalance: str,
    bars_file: Path | None,
    timeframe: str | None,
    threads: int,
) -> Finished:
    if sizing not in SIZINGS:
        raise InputError(f"--sizing {sizing}: expected one of {', '.join(SIZINGS)}.")
    if rebalance not in ("flips", "always"):
        raise InputError(f"--rebalance {rebalance}: expected flips or always.")
    rows = read_targets(targets)
    market_config = MarketConfig()
    description: dict[str, Any] = {}
    start = stop = None
    if config is not None:
        experiment = load_experiment(config)
        market_config = experiment.market
        description = experiment.dump()
        if split is not None:
            start, stop = getattr(experiment.splits, inputs.checked_split(split))
        if bars_file is None:
            every = experiment.load_bars()
            matching = [one for one in every if symbol is None or one.symbol.lower() == symbol.lower()]
            if not matching:
                raise InputError(f"--symbol {symbol}: the experiment has {', '.join(b.symbol for b in every)}.")
            bars = matching[0]
    elif split is not None:
        raise InputError(
            f"--split {split}: expected --config beside it; without one all bars from the first target on are traded."
        )
    if bars_file is not None:
        bars = _read_bars(bars_file, symbol, timeframe)
    elif config is None:
        bars = _stored_bars(symbol, timeframe, rows.timestamp)
    # Targets are exact wishes: the agent's no-trade band does not apply, and without stochastic fills nothing but the
    # fee does.
    market_config = inputs.evaluation_config(
        market_config, fees_bps=fees_bps, deterministic=deterministic, equity=equity
    )
    changes: dict[str, Any] = {
        "actions": market_config.actions.model_copy(
            update={
                "no_trade_band": 0.0,
                "spot": False,
                "max_leverage": max(market_config.actions.max_leverage, float(np.abs(rows.target).max()))
                if sizing == "fraction"
                else market_config.actions.max_leverage,
            }
        )
    }
    if deterministic:
        changes["margin"] = market_config.margin.model_copy(update={"enforce": False})
    market_config = MarketConfig.model_validate(market_config.model_copy(update=changes).model_dump())
    market = Market.prepare(bars, None, Instrument.for_symbol(bars.symbol), start=start, stop=stop)
    series, first = align(
        rows,
        market.timestamp,
        rebalance="flips" if rebalance == "flips" else "always",
        where=f"{bars.symbol} {bars.timeframe}",
    )
    stretch = Stretch(first, len(market))
    ready = inputs.prepared(bars, market, market_config)
    seeds = _seeds(fill_seeds or 20, seed, deterministic=deterministic)
    traded = run_series(
        series, market, market_config, seeds=seeds, name="policy", sizing=SIZINGS[sizing], stretch=stretch
    )
    return Finished(
        run=traded,
        prior=None,
        prepared=ready,
        terms=Terms(
            market=market,
            config=market_config,
            history_close=ready.history_close,
            stretch=stretch,
            sizing=SIZINGS[sizing],
            flips_only=rebalance == "flips",
            seed=seed,
            threads=threads,
        ),
        model=None,
        subject=targets.stem,
        kind="targets",
        subject_fingerprint=report.fingerprint([rows.timestamp.tolist(), rows.target.tolist(), sizing, rebalance]),
        feature_fingerprint=None,
        split=split or "all",
        simulations=None,
        config={
            **description,
            "market": market_config.model_dump(mode="json"),
            "targets": {"sizing": sizing, "rebalance": rebalance},
        },
        notes=[],
    )


def _read_bars(path: Path, symbol: str | None, timeframe: str | None) -> Bars:
    """Bars straight from a file; symbol and timeframe may stand in its name, as in BTCUSDT_1h.parquet."""
    named = dataset_of_file_name(path)
    chosen_symbol = symbol or (named[0] if named else path.stem)
    if timeframe is None and named is None:
        raise InputError(f"--bars {path}: its name tells no timeframe. Give --timeframe, such as 1h.")
    frame = Timeframe.parse(timeframe) if timeframe is not None else named[1] if named else Timeframe.parse("1d")
    blocks = list(FileReader(path, DatasetKey("file", chosen_symbol, frame), FileFormat()).blocks())
    return blocks[0] if len(blocks) == 1 else concatenate(blocks)


def _stored_bars(symbol: str | None, timeframe: str | None, timestamps: np.ndarray[Any, Any]) -> Bars:
    """The stored dataset that has every decided bar: the one named, or the only one that fits."""
    store = BarStore()
    fitting = []
    for manifest in store.list():
        if symbol is not None and manifest.symbol.lower() != symbol.lower():
            continue
        if timeframe is not None and manifest.timeframe != str(Timeframe.parse(timeframe)):
            continue
        first, last = manifest.first, manifest.last
        if first is None or last is None or first > timestamps[0] or last < timestamps[-1]:
            continue
        bars = store.load(manifest.symbol, manifest.timeframe, manifest.venue)
        if np.isin(timestamps, bars.timestamp).all():
            fitting.append(bars)
    if len(fitting) == 1:
        return fitting[0]
    stored = ", ".join(f"{m.symbol} {m.timeframe}" for m in store.list()) or "nothing"
    found = ", ".join(f"{b.symbol} {b.timeframe}" for b in fitting) or "none"
    raise InputError(
        f"--targets: expected one stored dataset with a bar at every timestamp, found {found} (stored: {stored}). "
        "Give --bars FILE, or --symbol and --timeframe, or --config."
    )


@app.command("compare")
def compare_command(
    contestants: Annotated[
        list[str], typer.Argument(help="checkpoints, runs or run names, each with @SIMULATIONS if not its own budget")
    ],
    config: Annotated[Path | None, typer.Option(help="experiment YAML; default: the first checkpoint's own")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    symbol: Annotated[str | None, typer.Option(help="which of the experiment's symbols")] = None,
    fill_seeds: Annotated[int, typer.Option(min=1, help="paths of random fills, the same for all")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of the first fill path and the bootstrap")] = 0,
    fees_bps: Annotated[float | None, typer.Option(help="taker and maker fee, basis points")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="fill at the next open, fees only")] = False,
    out: Annotated[Path, typer.Option(help="folder of compare.html and compare.json")] = OUT / "compare",
    trials: Annotated[Path, typer.Option(help="ledger of evaluations")] = LEDGER,
    json_output: JsonOption = False,
) -> None:
    """Compare checkpoints on the same bars and the same random fills.

    Example: python -m backtest compare demo demo@0 longer --fill-seeds 20
    """
    if len(contestants) < 2:
        raise InputError("compare: expected at least two contestants, such as: demo demo@0 (the same without search).")
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    finished: list[Finished] = []
    names = contestant_names(contestants)
    for text, name in zip(contestants, names, strict=True):
        given, budget = _contestant(text)
        one = _run_checkpoint(
            given, config, split, symbol, fill_seeds, seed, budget, fees_bps, deterministic, None, 1,
            name=name, with_prior=False,
        )  # fmt: skip
        finished.append(one)
    first = finished[0]
    ledger = TrialsLedger(trials)
    for one in finished:
        record_trial(one.run, _identity(one, seed), ledger, created=created)
    hold = standard_baselines(
        first.terms.market, first.terms.config, seeds=first.run.seeds, history_close=first.terms.history_close
    )["buy_and_hold"]
    found = comparing.compare([one.run for one in finished], hold, seed=seed)
    document = {
        "schema_version": report.SCHEMA_VERSION,
        "created": created,
        **comparing.comparison_json(found),
        "fingerprints": {one.run.name: one.subject_fingerprint for one in finished}
        | {"code": report.code_fingerprint()},
        "seeds": {"fill": list(first.run.seeds), "bootstrap": seed},
        "argv": meaningful_arguments(sys.argv[1:]),
    }
    out.mkdir(parents=True, exist_ok=True)
    rows = first.run.market
    page = comparing.comparison_page(found, f"{' and '.join(names)} on {rows.symbol} {rows.timeframe}", split)
    report.write_atomic(out / "compare.html", page.encode())
    report.write_atomic(out / "compare.json", report.encode_json(document))
    if json_output:
        print_json(document)
        return
    console = _console()
    console.print(f"\n[bold]{comparing.sentence(found)}[/bold]\n")
    for title, columns, lines in comparing.tables(found):
        table = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left")
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
        for name, cells in lines:
            table.add_row(name, *cells)
        console.print(table)
        console.print()
    console.print(f"page  {out / 'compare.html'}\njson  {out / 'compare.json'}")


def contestant_names(contestants: Sequence[str]) -> list[str]:
    """Short names for people, where they stay different; else what was given."""
    short = []
    for text in contestants:
        given, budget = _contestant(text)
        short.append(inputs.checkpoint_name(find_checkpoint(given)) + ("" if budget is None else f"@{budget}"))
    return short if len(set(short)) == len(short) else list(contestants)


def _contestant(text: str) -> tuple[str, int | None]:
    """NAME or NAME@SIMULATIONS."""
    name, separator, budget = text.rpartition("@")
    if not separator:
        return text, None
    if not budget.isdecimal():
        raise InputError(f"{text}: expected NAME or NAME@SIMULATIONS, such as demo@0.")
    return name, int(budget)


@app.command("walk-forward")
def walk_forward_command(
    config: Annotated[Path, typer.Argument(help="experiment YAML; its test split is cut into the folds' test parts")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, KEY=VALUE; repeatable")] = None,
    folds: Annotated[int, typer.Option(min=1, help="test parts")] = 4,
    train_bars: Annotated[int | None, typer.Option(min=1, help="sliding training length; default: all before")] = None,
    embargo: Annotated[int | None, typer.Option(min=0, help="extra bars between parts; default: n-step")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="training time per fold; default: the step budget")
    ] = None,
    symbol: Annotated[str | None, typer.Option(help="which of the experiment's symbols to test on")] = None,
    fill_seeds: Annotated[int | None, typer.Option(min=1, help="paths of random fills")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first fill path, the bootstrap and the shifts")] = 0,
    fees_bps: Annotated[float | None, typer.Option(help="taker and maker fee, basis points")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the folds and the report; default: under var")] = None,
    trials: Annotated[Path, typer.Option(help="ledger of evaluations")] = LEDGER,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget finished folds in the folder")] = False,
    json_output: JsonOption = False,
) -> None:
    """Train and test fold after fold; one out-of-sample report of all of them. Run again to continue.

    Example: python -m backtest walk-forward configs/sp500_1d.yaml --folds 4 --set agent.training.env_steps=100000
    """
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    experiment = load_experiment(config, set_ or [])
    every = experiment.load_bars()
    bars = next((one for one in every if symbol is None or one.symbol.lower() == symbol.lower()), None)
    if bars is None:
        raise InputError(f"--symbol {symbol}: the experiment has {', '.join(one.symbol for one in every)}.")
    place = out or OUT / f"walk-forward-{experiment.name}"
    if fresh:
        for old in place.glob("fold-*"):
            shutil.rmtree(old)
    market_config = inputs.evaluation_config(experiment.market, fees_bps=fees_bps, deterministic=False)
    seeds = _seeds(fill_seeds or experiment.backtest.fill_seeds, seed, deterministic=False)
    planned = walking.plan_folds(experiment, bars, folds=folds, train_bars=train_bars, embargo=embargo)
    results = []
    for fold in planned:
        where = place / f"fold-{fold.number + 1}"
        if not json_output:
            splits = fold.experiment.splits
            print(f"fold {fold.number + 1} of {len(planned)}: train {splits.train[0]} to {splits.train[1]}, "
                  f"test {splits.test[0]} to {splits.test[1]}", flush=True)  # fmt: skip
        results.append(
            walking.run_fold(fold, where, _fold_trainer(minutes), market_config, bars, seeds=seeds, progress=_progress)
        )
    combined = walking.combine(results, bars, market_config, seeds=seeds)
    description = {
        **experiment.dump(),
        "market": market_config.model_dump(mode="json"),
        "walk_forward": {
            "folds": [one.fold.experiment.splits.model_dump(mode="json") for one in results],
            "train_bars": train_bars,
        },
    }
    ready = inputs.prepared(bars, combined.market, market_config)
    finished = Finished(
        run=combined.run,
        prior=None,
        prepared=ready,
        terms=Terms(
            market=combined.market,
            config=market_config,
            history_close=ready.history_close,
            stretch=combined.stretch,
            seed=seed,
        ),
        model=Model(discount=experiment.agent.discount, reward_scale=experiment.market.reward.scale, codes=None),
        subject=f"{experiment.name} walk-forward",
        kind="walk-forward",
        subject_fingerprint=report.fingerprint([one.checkpoint for one in results]),
        feature_fingerprint=experiment.feature_set.fingerprint,
        split="walk-forward",
        simulations=experiment.agent.search.simulations,
        config=description,
        notes=[],
    )
    _judge_and_report(
        finished,
        seed=seed,
        created=created,
        trials=trials,
        place=place,
        json_output=json_output,
        bounds=combined.bounds,
    )


def _fold_trainer(minutes: float | None) -> walking.TrainFold:
    """Training as the walk-forward needs it: start or continue in a directory, give the best checkpoint's policy."""

    def train(experiment: Experiment, directory: Path) -> tuple[Policy, str]:
        envs = MarketEnvs(experiment)
        settings = RunSettings(
            directory=directory,
            seed=experiment.seed,
            code_version=code_version(),
            minutes=minutes,
            experiment=experiment.dump(),
            feature_fingerprint=experiment.feature_set.fingerprint,
            data_fingerprint=envs.data_fingerprint,
            code_statistics=envs.code_statistics,
        )
        directory.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(experiment.agent, envs, settings)
        if (directory / "checkpoints" / "latest").exists():
            trainer.resume()
        with redirect_stdout(sys.stderr):  # stdout belongs to the report
            trainer.run()
        policy = load_policy(directory / "checkpoints" / "best")
        return policy, inputs.checkpoint_fingerprint(policy.metadata)

    return train


@app.command("lookahead")
def lookahead_command(
    checkpoint: Annotated[str | None, typer.Option(help="checkpoint, run or run name; default: the newest run")] = None,
    config: Annotated[Path | None, typer.Option(help="experiment YAML: audit its features without a policy")] = None,
    features: Annotated[
        str | None, typer.Option(help="your own: FILE.py:NAME, an object with names, warmup and compute(bars)")
    ] = None,
    bars: Annotated[Path | None, typer.Option(help="CSV or Parquet of bars to audit on")] = None,
    symbol: Annotated[str | None, typer.Option(help="which of the experiment's symbols, or the name of --bars")] = None,
    timeframe: Annotated[str | None, typer.Option(help="of --bars")] = None,
    decisions: Annotated[int, typer.Option(min=50, help="decisions at which the future is changed")] = 50,
    last_bars: Annotated[int, typer.Option(min=500, help="audit on the latest bars only, to bound the time")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="of the other futures")] = 0,
    plant: Annotated[
        bool, typer.Option("--plant", help="add a column that knows the next return: must be caught")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Prove that no feature and no decision knows what comes next. Exit code 3 if one does.

    Example: python -m backtest lookahead --features my_features.py:FEATURES --bars BTCUSDT_1h.parquet
    """
    policy = None
    market_config = MarketConfig().for_evaluation()
    table: lookahead.FeatureTable = FeatureSet.build()
    audited: Bars | None = None
    subject = "the default features"
    if features is not None:
        table, subject = inputs.features_of_file(features), features
    if config is not None or (features is None and bars is None):
        path = None if config is not None and checkpoint is None else find_checkpoint(checkpoint)
        if path is not None:
            metadata = read_metadata(path)
            experiment = inputs.experiment_of(metadata, config, path)
            policy = None if plant or features is not None else inputs.policy_of(path)
            subject = inputs.checkpoint_name(path)
        else:
            experiment = load_experiment(config or Path())
            subject = experiment.name
        market_config = experiment.market.for_evaluation()
        table = experiment.feature_set if features is None else table
        every = experiment.load_bars()
        audited = next((one for one in every if symbol is None or one.symbol.lower() == symbol.lower()), None)
        if audited is None:
            raise InputError(f"--symbol {symbol}: the experiment has {', '.join(one.symbol for one in every)}.")
    if bars is not None:
        audited = _read_bars(bars, symbol, timeframe)
    if audited is None:
        audited = load_sample("sp500")
    audited = audited.slice(max(len(audited) - last_bars, 0), None)
    if plant:
        table = lookahead.PlantedLeak(table)
    with _progress(f"look-ahead audit of {subject}", 1) as shown:
        for _ in shown(range(1)):
            found = lookahead.audit(
                table, audited, Instrument.for_symbol(audited.symbol), market_config,
                policy=policy, decisions=decisions, seed=seed,
            )  # fmt: skip
    document = lookahead.audit_json(found, subject=subject, symbol=audited.symbol, bars=len(audited))
    if json_output:
        print_json(document)
    else:
        _console().print(lookahead.audit_text(found, subject=subject), markup=False)
    if not found.clean:
        raise typer.Exit(LEAK_FOUND)


def _seeds(count: int, first: int, *, deterministic: bool) -> list[int]:
    """Fill seeds; without randomness one path says everything."""
    return [first] if deterministic else list(range(first, first + count))


def parse_gate(text: str) -> tuple[str, float]:
    """METRIC=VALUE of --fail-under."""
    name, separator, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise InputError(
            f"--fail-under {text}: expected METRIC=VALUE such as sharpe_ci_low=0 or max_drawdown=-0.2."
        ) from (error if separator else None)


def gate_failure(document: dict[str, Any], name: str, threshold: float) -> str | None:
    """Why a gate failed, or None. Names: any metric, METRIC_ci_low, METRIC_ci_high, psr, deflated_sharpe."""
    metrics = document["metrics"]
    reason = None
    if name in metrics:
        value, reason = metrics[name]["value"], metrics[name]["reason"]
    elif name.endswith(("_ci_low", "_ci_high")) and name.rsplit("_ci_", 1)[0] in metrics:
        ci = metrics[name.rsplit("_ci_", 1)[0]]["ci"]
        value, reason = (None, "no interval") if ci is None else (ci[0 if name.endswith("low") else 1], None)
    elif name in ("psr", "deflated_sharpe"):
        value, reason = document["significance"][name], "returns do not vary"
    else:
        known = ", ".join([*metrics, "sharpe_ci_low", "psr", "deflated_sharpe"])
        raise InputError(f"--fail-under {name}: no such metric. Known: {known}.")
    if value is None:
        return f"{name} is undefined ({reason}), {threshold:g} was asked for"
    return None if value >= threshold else f"{name} is {value:.6g}, below {threshold:g}"


def meaningful_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line less what only says where output goes, so that equal work gives equal reports."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        option = argument.split("=", 1)[0]
        if skip:
            skip = False
        elif option in SILENT_FLAGS:
            continue
        elif option in SILENT_OPTIONS:
            skip = "=" not in argument
        else:
            kept.append(argument)
    return kept


def _print_evaluation(evaluation: Evaluation, context: report.Context, place: Path) -> None:
    console = _console()
    console.print(f"\n[bold]{evaluation.verdict.sentence}[/bold]\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in COMPARED_NAMES:
        table.add_column(name, justify="right")
    table.add_column("p of lead", justify="right")

    def add(name: str, metrics: Any, p_value: float | None) -> None:
        cells = [number(key, metrics[key].value) for key in COMPARED]
        table.add_row(name, *cells, "" if p_value is None else f"{p_value:.2f}")

    add("strategy", evaluation.metrics, None)
    for name, metrics in evaluation.baseline_metrics.items():
        add(label(name).lower(), metrics, evaluation.spa.get(name))
    console.print(table)
    sharpe = evaluation.metrics["sharpe"]
    if sharpe.ci is not None:
        console.print(f"\nSharpe 95% interval  {sharpe.ci[0]:.2f} to {sharpe.ci[1]:.2f} (stationary bootstrap)")
    band = evaluation.fill_band.get("total_return")
    if band is not None and evaluation.run.paths > 1:
        console.print(
            f"Fill band            {band.p05:.1%} to {band.p95:.1%} total return over {evaluation.run.paths} fill seeds"
        )
    timing = evaluation.random_timing
    if timing is not None:
        console.print(
            f"Random timing        p = {timing.p_value:.3f} ({len(timing.shifts)} shifts of its own positions)"
        )
    dsr = evaluation.evidence.dsr
    trials = evaluation.trials
    console.print(
        f"Deflated Sharpe      {'undefined' if dsr is None else f'{dsr:.2f}'} with {trials.trials} trial(s); "
        f"this split was looked at {trials.touches} time(s)"
    )
    for warning in evaluation.warnings:
        console.print(f"note: {warning}", style="yellow")
    console.print(f"\nreport  {place / 'report.html'}\njson    {place / 'report.json'}")


@app.command("optimality")
def optimality_command(
    checkpoint: Annotated[
        str | None, typer.Option(help="checkpoint trained on a verification market; without one the optima are listed")
    ] = None,
    market: Annotated[str, typer.Option(help=f"one of {', '.join(verifying.MARKETS)}")] = "regime",
    set_: Annotated[list[str] | None, typer.Option("--set", help="market parameter, KEY=VALUE; repeatable")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="episodes, all on draws of their own")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="steps per episode")] = 256,
    simulations: Annotated[int | None, typer.Option(min=0, help="search budget; 0 acts by the prior")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_output: JsonOption = False,
) -> None:
    """Score a checkpoint on a market whose optimal policy is known: (agent - flat) / (optimal - flat).

    Example: python -m backtest optimality --checkpoint var/runs/regime --market regime --set drift=0.3
    """
    if checkpoint is None:
        if set_:
            raise verifying.OptimalityError(
                "--set: expected --checkpoint beside it; without one all optima are listed."
            )
        documents = [verifying.score_json(one) for one in verifying.all_markets()]
        if json_output:
            print_json(documents)
            return
        for document in documents:
            ceiling = document["open_loop_value"]
            beside = "" if ceiling is None else f"  (best plan that cannot react to chance: {ceiling:.4f})"
            print(f"{document['market']:16} optimal reward per step {document['optimal_value']:.4f}{beside}")
        return
    chosen = verifying.market_of(market, set_ or [])
    path = find_checkpoint(checkpoint)
    metadata = read_metadata(path)
    verifying.check_fits(metadata.observation_shapes, metadata.actions, chosen)
    scored = verifying.score(
        inputs.policy_of(path), market, chosen, episodes=episodes, steps=steps, seed=seed, simulations=simulations
    )
    document = verifying.score_json(scored)
    if json_output:
        print_json(document)
        return
    result = scored.result
    if result is None or result.score is None:
        print(f"{market}: the best policy is to do nothing; the agent earned {document['agent']:.4f} per step")
    else:
        print(
            f"{market}: optimality {result.score:.3f} +- {result.standard_error:.3f} "
            f"(agent {result.agent:.4f}, optimal {result.optimal:.4f} per step, same draws)"
        )


def _console() -> Console:
    """Tables keep their columns whole in a pipe, where there is no terminal width to fit."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Rows]:
    """A progress bar on stderr for work over rows; quiet when that is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(title, total=total)

        def shown(rows: Iterable[int]) -> Iterator[int]:
            for row in rows:
                yield row
                progress.advance(task)

        yield shown


if __name__ == "__main__":
    torch.set_num_threads(1)  # decisions are planned one by one: handing such small products around costs more
    run(app, "python -m backtest")
