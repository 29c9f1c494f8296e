"""report.json, the contract, and every other file a backtest leaves behind.

Each file is written beside its place and renamed into it, so a reader never meets half of one. The JSON holds no
path, no host and no clock but its `created`: the same inputs give the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from backtest.evaluation import Evaluation
from backtest.metrics import Metric, values
from backtest.page import Provenance, render_page
from backtest.results import (
    Run,
    decisions_frame,
    equity_frame,
    fills_frame,
    trades_frame,
)
from data.store import write_atomically

SCHEMA_VERSION = 1
CODE_PACKAGES = ("data", "market_env", "agent", "configs", "backtest")
REPORTED_VERSIONS = ("numpy", "numba", "torch", "arch", "pandas")


@dataclass(frozen=True)
class Context:
    """What the report says about its inputs.

    subject: what was evaluated, as a name people know. arguments: the command line less what only says where output
    goes.
    fingerprints: data, config, checkpoint (or targets), features, code. config: the resolved configuration.
    """

    subject: str
    kind: str
    split: str
    mode: str
    simulations: int | None
    fingerprints: Mapping[str, str | None]
    seeds: Mapping[str, Any]
    arguments: Sequence[str]
    config: Mapping[str, Any]
    created: str


def fingerprint(value: Any) -> str:
    """Short content hash of anything JSON can say."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dataset_fingerprint(bars_fingerprint: str, timestamps: NDArray[np.int64]) -> str:
    """What the trials ledger knows a split's bars by: whoever is judged on the same bars is one more trial on them."""
    return fingerprint([bars_fingerprint, int(timestamps[0]), int(timestamps[-1])])


def code_fingerprint(packages: Sequence[str] = CODE_PACKAGES) -> str:
    """Hash over the Python sources that decide a backtest's outcome."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _metrics_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.as_json() for name, metric in metrics.items()}


def _iso(time_ms: int) -> str:
    return f"{np.datetime64(int(time_ms), 'ms').astype('datetime64[s]')}Z"


def report_json(evaluation: Evaluation, context: Context) -> dict[str, Any]:
    """The whole report as plain JSON types."""
    run, timing, boot = evaluation.run, evaluation.random_timing, evaluation.bootstrap
    rows = run.market
    path = run.representative
    per_path = [values(run.metrics(index)) for index in range(run.paths)]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": context.created,
        "subject": {"name": context.subject, "kind": context.kind, "simulations": context.simulations},
        "verdict": {
            "skill": evaluation.verdict.skill,
            "sentence": evaluation.verdict.sentence,
            "checks": [
                {"name": check.name, "passed": check.passed, "text": check.text} for check in evaluation.verdict.checks
            ],
        },
        "market": {
            "symbol": rows.symbol,
            "timeframe": rows.timeframe,
            "split": context.split,
            "mode": context.mode,
            "bars": len(rows),
            "first_decision": _iso(int(rows.timestamp[0])),
            "first_decision_taken_at": _iso(int(rows.close_time[0])),
            "last_bar": _iso(int(rows.timestamp[-1])),
            "days": float(rows.close_time[-1] - rows.close_time[0]) / 86_400_000.0,
            "days_per_year": rows.days_per_year,
        },
        "ruined": run.ruined,
        "ambiguous_bars": run.ambiguous_bars,
        "metrics": _metrics_json(evaluation.metrics),
        "fill_band": {
            name: {"p05": band.p05, "median": band.median, "p95": band.p95}
            for name, band in evaluation.fill_band.items()
        },
        "fill_paths": [
            {
                "seed": seed,
                **{
                    name: numbers[name] for name in ("final_equity", "total_return", "sharpe", "max_drawdown", "trades")
                },
            }
            for seed, numbers in zip(run.seeds, per_path, strict=True)
        ],
        "representative_seed": run.seeds[path],
        "baselines": {
            name: {"metrics": _metrics_json(metrics), "spa_p_value": evaluation.spa.get(name)}
            for name, metrics in evaluation.baseline_metrics.items()
        },
        "significance": {
            "random_timing": None
            if timing is None
            else {
                "p_value": timing.p_value,
                "shifts": len(timing.shifts),
                "own_total_return": float(np.expm1(timing.own)),
                "median_total_return": float(np.expm1(np.median(timing.log_growth))),
                "own_turnover": timing.own_turnover,
                "median_turnover": float(np.median(timing.turnover)),
            },
            "bootstrap": None if boot is None else {"reps": len(boot.sharpe), "mean_block_days": boot.block_length},
            "psr": evaluation.evidence.psr,
            "deflated_sharpe": evaluation.evidence.dsr,
            "expected_maximum_daily_sharpe": evaluation.evidence.expected_maximum,
            "minimum_track_record_days": evaluation.evidence.minimum_track_record,
            "probability_of_overfitting": {
                "value": evaluation.overfitting,
                "reason": evaluation.overfitting_reason,
            },
        },
        "trials": {
            "touches": evaluation.trials.touches,
            "trials": evaluation.trials.trials,
            "sharpe_variance": evaluation.trials.variance,
        },
        "folds": [
            {
                "label": fold.label,
                "total_return": fold.total_return,
                "buy_and_hold": fold.buy_and_hold,
            }
            for fold in evaluation.folds
        ],
        "sensitivity": [
            {"name": one.name, "total_return": one.total_return, "sharpe": one.sharpe} for one in evaluation.scenarios
        ],
        "calibration": _calibration_json(evaluation),
        "warnings": list(evaluation.warnings),
        "fingerprints": dict(context.fingerprints),
        "seeds": dict(context.seeds),
        "argv": list(context.arguments),
        "versions": {name: version(name) for name in REPORTED_VERSIONS},
    }


def _calibration_json(evaluation: Evaluation) -> dict[str, Any] | None:
    found = evaluation.calibration
    if found is None:
        return None
    return {
        "value_correlation": found.value_correlation,
        "value_bins": [
            {"predicted": predicted, "realised": realised, "n": count}
            for predicted, realised, count in found.value_bins
        ],
        "pit": None if found.pit is None else list(found.pit),
        "crps": dict(found.crps),
        "reason": found.reason,
    }


def provenance(evaluation: Evaluation, context: Context) -> Provenance:
    """The page's heading and its last table."""
    rows = evaluation.run.market
    first, last = _iso(int(rows.timestamp[0]))[:10], _iso(int(rows.timestamp[-1]))[:10]
    seeds = evaluation.run.seeds
    shown = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    plural = "seed" if len(seeds) == 1 else "seeds"
    lines = [
        ("Evaluated", context.subject),
        (
            "Market",
            f"{rows.symbol} {rows.timeframe}, {len(rows):,} bars, {rows.days_per_year} trading days a year",
        ),
        ("Split", f"{context.split}: first decision on the bar of {first}, last bar {last}"),
        ("Fills", f"{context.mode}, seeds {shown}; single curves show seed {seeds[evaluation.run.representative]}"),
        (
            "Search",
            "none: targets were given" if context.simulations is None else f"{context.simulations} simulations",
        ),
        *((f"Fingerprint of {name}", value or "none") for name, value in context.fingerprints.items()),
        ("Command", "python -m backtest " + " ".join(context.arguments)),
        ("Created", context.created),
    ]
    return Provenance(
        heading=f"{context.subject} on {rows.symbol} {rows.timeframe}",
        subtitle=f"{context.split} split, {first} to {last}, {context.mode} fills, {len(seeds)} fill {plural}",
        rows=lines,
    )


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside the place, flush, and rename into it."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_atomically(path, write)


def encode_json(report: Mapping[str, Any]) -> bytes:
    """The report's bytes: sorted by meaning (as built), no NaN, one final newline."""
    return (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()


def _parquet(frame: pd.DataFrame) -> bytes:
    return bytes(frame.to_parquet(index=False, compression="zstd"))


def _csv(frame: pd.DataFrame) -> bytes:
    text: str = frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%SZ")
    return text.encode()


def write_artefacts(
    out: Path, evaluation: Evaluation, context: Context, *, extra_runs: Sequence[Run] = ()
) -> dict[str, Any]:
    """Every file of a backtest into `out`; returns the JSON report, which is written last: where it is, all is."""
    out.mkdir(parents=True, exist_ok=True)
    run = evaluation.run
    report = report_json(evaluation, context)
    write_atomic(
        out / "config.resolved.yaml",
        yaml.safe_dump(dict(context.config), sort_keys=False, allow_unicode=True).encode(),
    )
    write_atomic(out / "trades.csv", _csv(trades_frame(run)))
    write_atomic(out / "fills.csv", _csv(fills_frame(run)))
    write_atomic(out / "equity.parquet", _parquet(equity_frame([run, *evaluation.baselines.values(), *extra_runs])))
    write_atomic(out / "decisions.parquet", _parquet(decisions_frame(run)))
    write_atomic(out / "report.html", render_page(evaluation, provenance(evaluation, context)).encode())
    write_atomic(out / "report.json", encode_json(report))
    return report
