"""python -m backtest, as a user meets it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from backtest.__main__ import app, gate_failure, meaningful_arguments, parse_gate
from backtest.inputs import InputError
from backtest.targets import TargetsError
from data.synthetic import martingale

ROWS = 24 * 60


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Bars of sixty days and targets that flip every day."""
    bars = martingale(ROWS, seed=3)
    moments = pd.to_datetime(bars.timestamp, unit="ms", utc=True)
    bars_file, targets_file = tmp_path / "MADEUP_1h.csv", tmp_path / "daily.csv"
    frame = pd.DataFrame(
        {"timestamp": bars.timestamp} | {n: getattr(bars, n) for n in ("open", "high", "low", "close")}
    )
    frame["volume"] = bars.volume
    frame.to_csv(bars_file, index=False)
    target = np.where((np.arange(ROWS) // 24) % 2 == 0, 1.0, 0.0)
    pd.DataFrame({"timestamp": moments.strftime("%Y-%m-%dT%H:%M:%SZ"), "target": target}).to_csv(
        targets_file, index=False
    )
    return bars_file, targets_file


@pytest.fixture
def invoke(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command in this process; --bars, --targets, --out and --trials are given."""
    bars_file, targets_file = files
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, out: str = "out", expected: int = 0) -> Any:
        line = [
            "run", "--bars", str(bars_file), "--targets", str(targets_file), "--out", out, "--fill-seeds", "3",
            *arguments,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["backtest", *line])
        result = CliRunner().invoke(app, line)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == expected, result.output
        return result

    return call


def test_a_run_prints_its_verdict_first_and_writes_every_artefact(invoke: Callable[..., Any], tmp_path: Path) -> None:
    result = invoke()
    assert result.output.strip().startswith(("No evidence of skill", "Evidence of skill"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "report.json", "trades.csv", "fills.csv", "equity.parquet", "decisions.parquet",
        "config.resolved.yaml",
    }  # fmt: skip


def test_two_runs_give_the_same_json_but_for_its_timestamp(invoke: Callable[..., Any], tmp_path: Path) -> None:
    invoke(out="one")
    invoke("--threads", "2", out="two")
    one, two = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "two"))
    assert one.pop("created")
    assert two.pop("created")
    assert one == two


def test_json_output_is_the_report(invoke: Callable[..., Any], tmp_path: Path) -> None:
    result = invoke("--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "report.json").read_text())


def test_deterministic_mode_has_one_path_and_pays_the_fee_only(invoke: Callable[..., Any], tmp_path: Path) -> None:
    invoke("--deterministic", "--fees-bps", "10", "--sizing", "allin")
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["seeds"]["fill"] == [0]
    costs = {name: one["value"] for name, one in document["metrics"].items() if name.startswith("cost_")}
    assert costs["cost_fee"] > 0
    assert costs["cost_total"] == pytest.approx(costs["cost_fee"])


def test_fees_reach_the_result(invoke: Callable[..., Any], tmp_path: Path) -> None:
    final = {}
    for fee in ("0", "50"):
        invoke("--deterministic", "--fees-bps", fee)
        final[fee] = json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]["final_equity"]["value"]
    assert final["0"] > final["50"]


def test_a_failed_gate_is_exit_code_one_and_still_leaves_the_report(invoke: Callable[..., Any], tmp_path: Path) -> None:
    result = invoke("--fail-under", "sharpe_ci_low=1000", expected=1)
    assert "gate failed: sharpe_ci_low is" in result.output
    assert (tmp_path / "out" / "report.json").exists()
    invoke("--fail-under", "max_drawdown=-1", expected=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--sizing", "lots"), InputError, "units, fraction, allin"),
        (("--rebalance", "never"), InputError, "flips or always"),
        (("--split", "test"), InputError, "--config beside it"),
        (("--checkpoint", "x"), InputError, "no --checkpoint"),
        (("--fees-bps", "-1"), InputError, "basis points"),
        (("--fail-under", "sharpe"), InputError, "METRIC=VALUE"),
        (("--targets", "absent.csv"), TargetsError, "no such file"),
    ],
)
def test_bad_input_says_what_was_expected(
    invoke: Callable[..., Any], arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        invoke(*arguments)


def test_as_a_process_bad_input_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "backtest", "run", "--targets", "absent.csv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_only_what_decides_the_result_is_recorded_of_the_command_line() -> None:
    line = ["run", "--out", "here", "--json", "--threads=4", "--fees-bps", "1", "--trials", "x", "--debug"]
    assert meaningful_arguments(line) == ["run", "--fees-bps", "1"]


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        ("sharpe=1", True),
        ("sharpe=2.1", False),
        ("sharpe_ci_low=0.5", True),
        ("sharpe_ci_high=9", False),
        ("calmar=0", False),
        ("deflated_sharpe=0.9", True),
    ],
)
def test_gates_read_values_intervals_and_undefined_metrics(gate: str, passes: bool) -> None:
    document = {
        "metrics": {
            "sharpe": {"value": 2.0, "ci": [0.5, 3.0], "n": 9, "reason": None},
            "calmar": {"value": None, "ci": None, "n": 9, "reason": "no drawdown"},
        },
        "significance": {"psr": 0.99, "deflated_sharpe": 0.95},
    }
    assert (gate_failure(document, *parse_gate(gate)) is None) == passes


def test_an_unknown_gate_names_those_there_are() -> None:
    with pytest.raises(InputError, match="Known: sharpe"):
        gate_failure({"metrics": {"sharpe": {}}, "significance": {}}, "shape", 0.0)
