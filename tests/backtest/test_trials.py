"""The trials ledger: nothing is forgotten, nothing counts twice, nothing is torn."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backtest.trials import Trial, TrialsLedger, TrialsLedgerError, return_panel, statistics

TRIAL = Trial(
    key="k1", subject="s1", dataset="d", split="test", sharpe=0.1, first_day=100, returns=(0.01, -0.02), created="2026"
)


@pytest.fixture
def ledger(tmp_path: Path) -> TrialsLedger:
    return TrialsLedger(tmp_path / "var" / "trials.jsonl")


def test_what_is_appended_is_read_back(ledger: TrialsLedger) -> None:
    other = replace(TRIAL, key="k2", sharpe=None)
    ledger.append(TRIAL)
    ledger.append(other)
    assert ledger.read() == [TRIAL, other]


def test_an_absent_ledger_is_empty(ledger: TrialsLedger) -> None:
    assert ledger.read() == []


def test_repeating_an_evaluation_is_one_touch_and_one_trial(ledger: TrialsLedger) -> None:
    for _ in range(3):
        ledger.append(TRIAL)
    found = statistics(ledger.read(), dataset="d", split="test")
    assert (found.touches, found.trials, found.variance) == (1, 1, 0.0)


def test_other_seeds_are_another_touch_but_the_same_trial(ledger: TrialsLedger) -> None:
    trials = [TRIAL, replace(TRIAL, key="k2"), replace(TRIAL, key="k3", subject="s2", sharpe=0.3)]
    found = statistics(trials, dataset="d", split="test")
    assert (found.touches, found.trials) == (3, 2)
    assert found.variance == pytest.approx(0.02)  # of 0.1 and 0.3


def test_other_splits_and_datasets_do_not_count() -> None:
    trials = [TRIAL, replace(TRIAL, key="k2", split="validation"), replace(TRIAL, key="k3", dataset="e")]
    assert statistics(trials, dataset="d", split="test").touches == 1


def test_parallel_writers_lose_no_line(ledger: TrialsLedger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: ledger.append(replace(TRIAL, key=f"k{index}")), range(40)))
    assert {trial.key for trial in ledger.read()} == {f"k{index}" for index in range(40)}


def test_a_line_torn_by_a_killed_writer_loses_only_itself(ledger: TrialsLedger) -> None:
    ledger.append(TRIAL)
    with ledger.path.open("a") as file:
        file.write('{"key": "half')
    later = replace(TRIAL, key="k2")
    ledger.append(later)
    assert ledger.read() == [TRIAL, later]


def test_a_line_that_is_no_trial_is_an_error_that_names_it(ledger: TrialsLedger) -> None:
    ledger.append(TRIAL)
    with ledger.path.open("a") as file:
        file.write('{"key": "k2"}\n')
    with pytest.raises(TrialsLedgerError, match="line 2"):
        ledger.read()


def test_panel_holds_the_latest_returns_of_each_subject_on_the_same_days() -> None:
    trials = [
        TRIAL,
        replace(TRIAL, key="k2", subject="s2", returns=(0.03, 0.04)),
        replace(TRIAL, key="k3", subject="s3", returns=(0.5,)),
    ]
    panel = return_panel(trials, dataset="d", split="test")
    assert panel is not None
    assert np.array_equal(panel, [[0.01, 0.03], [-0.02, 0.04]])
