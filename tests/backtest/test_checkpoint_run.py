"""The commands on a real checkpoint: a small untrained model on S&P 500 bars."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from agent.checkpoint import CheckpointMetadata, CodeMeaning, Counters, save_checkpoint
from agent.networks.model import StochasticMuZero
from backtest.__main__ import app
from backtest.inputs import InputError
from configs.experiment import Experiment, parse_experiment


def experiment(**changes: Any) -> Experiment:
    raw = {
        "name": "small",
        "data": {"source": "sample", "symbols": ["sp500", "nasdaq"], "timeframe": "1d"},
        "splits": {
            "train": ["1999-01-01", "2013-01-01"],
            "validation": ["2013-01-01", "2018-01-01"],
            "test": ["2018-01-01", "2018-10-01"],
        },
        "features": ["close_return", "open_gap"],
        "market": {"actions": {"levels": [-1.0, 0.0, 1.0]}, "observation": {"window": 8}},
        "agent": {
            "network": {"width": 16, "encoder_width": 16, "latent": 8, "hidden": 16, "codes": 4, "support_atoms": 11},
            "search": {"simulations": 4},
        },
        "backtest": {"fill_seeds": 2},
    }
    return parse_experiment(raw | changes, "test")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run called `small` in var/runs."""
    folder = tmp_path_factory.mktemp("workplace")
    small = experiment()
    torch.manual_seed(3)
    shapes = {"window": (8, 2), "account": (8,)}
    model = StochasticMuZero(shapes, 3, small.agent.network)
    for head in model.parameters():  # an untrained policy head prefers nothing; make it choose
        torch.nn.init.normal_(head, std=0.3)
    codes = [
        CodeMeaning(code=code, count=9, mean=0.0, quantiles={"0.05": -0.02, "0.5": 0.001 * code, "0.95": 0.02})
        for code in range(4)
    ]
    metadata = CheckpointMetadata(
        code_version="test",
        agent=small.agent,
        observation_shapes=shapes,
        actions=3,
        counters=Counters(),
        experiment=small.dump(),
        feature_fingerprint=small.feature_set.fingerprint,
        code_statistics=codes,
    )
    save_checkpoint(folder / "var/runs/small/checkpoints", "best", model, metadata)
    return folder


@pytest.fixture
def invoke(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(workplace)

    def call(*line: str, expected: int = 0) -> Any:
        monkeypatch.setattr(sys, "argv", ["backtest", *line])
        result = CliRunner().invoke(app, list(line))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == expected, result.output
        return result

    return call


def test_guards_are_asked_for_and_then_told_of(invoke: Callable[..., Any], workplace: Path) -> None:
    invoke("run", "--out", "plain")
    invoke("run", "--guards", "--out", "guarded")
    plain, guarded = (json.loads((workplace / name / "report.json").read_text()) for name in ("plain", "guarded"))
    assert not any("Guards" in warning for warning in plain["warnings"])
    assert any("Guards on" in warning for warning in guarded["warnings"])
    assert plain["fingerprints"]["config"] != guarded["fingerprints"]["config"]


def test_bare_run_scores_the_newest_run_on_its_test_split(invoke: Callable[..., Any], workplace: Path) -> None:
    result = invoke("run")
    assert "--symbol chooses among SP500, NASDAQ" in result.output
    document = json.loads((workplace / "var/backtest/small-best-test/report.json").read_text())
    assert document["market"]["symbol"] == "SP500"
    assert document["market"]["first_decision"] == "2018-01-02T00:00:00Z"
    assert set(document["baselines"]) == {"buy_and_hold", "prior", "sma_cross", "flat"}
    assert document["subject"] == {"name": "small/best", "kind": "checkpoint", "simulations": 4}
    assert document["seeds"]["fill"] == [0, 1]
    assert document["calibration"]["pit"] is not None
    decisions = pd.read_parquet(workplace / "var/backtest/small-best-test/decisions.parquet")
    assert {"action", "target", "value", "policy_0", "prior_2", "q_values_1"} <= set(decisions.columns)


def test_a_repeated_run_is_the_same_to_the_byte_but_for_its_timestamp(
    invoke: Callable[..., Any], workplace: Path
) -> None:
    texts = []
    for out in ("one", "two"):
        invoke("run", "--fill-seeds", "3", "--out", out, "--trials", "repeat.jsonl")
        text = (workplace / out / "report.json").read_text()
        created = json.loads(text)["created"]
        texts.append(text.replace(created, "then"))
    assert texts[0] == texts[1]


def test_options_reach_the_run(invoke: Callable[..., Any], workplace: Path) -> None:
    invoke(
        "run", "--split", "validation", "--symbol", "nasdaq", "--simulations", "0", "--deterministic", "--fees-bps",
        "3", "--out", "options",
    )  # fmt: skip
    document = json.loads((workplace / "options/report.json").read_text())
    assert (document["market"]["symbol"], document["market"]["split"]) == ("NASDAQ", "validation")
    assert document["market"]["mode"] == "deterministic"
    assert document["subject"]["simulations"] == 0
    assert "prior" not in document["baselines"]
    assert "taker_fee_bps: 3.0" in (workplace / "options/config.resolved.yaml").read_text()


def test_the_training_split_comes_with_a_warning(invoke: Callable[..., Any]) -> None:
    result = invoke("run", "--split", "train", "--simulations", "0", "--fill-seeds", "1", "--out", "train")
    assert "the figures say nothing about skill" in " ".join(result.output.split())


def test_other_features_than_the_checkpoint_reads_are_refused(invoke: Callable[..., Any], workplace: Path) -> None:
    other = experiment(features=["close_return"])
    (workplace / "other.yaml").write_text(other.to_yaml())
    with pytest.raises(InputError, match="reads features"):
        invoke("run", "--config", "other.yaml")


def test_lookahead_is_clean_for_the_checkpoint_and_finds_a_planted_leak(invoke: Callable[..., Any]) -> None:
    clean = json.loads(invoke("lookahead", "--last-bars", "600", "--json").stdout)
    assert clean["clean"]
    assert clean["replayed_decisions"] >= 50
    planted = invoke("lookahead", "--last-bars", "600", "--plant", "--json", expected=3)
    assert json.loads(planted.stdout)["first_leak"] == "planted_leak"


def test_lookahead_audits_a_user_s_own_features(invoke: Callable[..., Any], workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "class Normalised:\n"
        "    names, warmup = ('whole_series_score',), 1\n"
        "    def compute(self, bars):\n"
        "        return ((bars.close - bars.close.mean()) / bars.close.std())[:, None]\n"
        "FEATURES = Normalised()\n"
    )
    result = invoke("lookahead", "--features", "mine.py:FEATURES", "--last-bars", "600", expected=3)
    assert "LEAK: whole_series_score" in result.output
    with pytest.raises(InputError, match="nothing of that name"):
        invoke("lookahead", "--features", "mine.py:ABSENT")


def test_compare_puts_search_beside_its_prior(invoke: Callable[..., Any], workplace: Path) -> None:
    result = invoke("compare", "small", "small@0", "--fill-seeds", "2", "--out", "compare", "--json")
    document = json.loads(result.stdout)
    assert document["reference"] == "small/best"
    assert [one["name"] for one in document["differences"]] == ["small/best@0"]
    assert (workplace / "compare/compare.html").stat().st_size < 8_000_000


def test_optimality_refuses_a_checkpoint_made_for_bars(invoke: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="trained on this verification market"):
        invoke("optimality", "--checkpoint", "small")
