"""Targets decided elsewhere."""

from pathlib import Path

import numpy as np
import pytest

from backtest.targets import TargetRows, TargetsError, align, read_targets

HOUR = 3_600_000
BARS = 1_700_000_000_000 // HOUR * HOUR + HOUR * np.arange(10, dtype=np.int64)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "targets.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "times",
    [
        ["2023-11-14T22:00:00Z", "2023-11-14T23:00:00Z"],
        ["2023-11-14 22:00:00", "2023-11-14 23:00:00"],
        ["2023-11-14T23:00:00+01:00", "2023-11-15T00:00:00+01:00"],
        ["1699999200000", "1700002800000"],
        ["1699999200", "1700002800"],
    ],
    ids=["ISO", "ISO without a zone is UTC", "ISO with an offset", "epoch ms", "epoch s"],
)
def test_timestamps_are_understood_in_every_usual_form(tmp_path: Path, times: list[str]) -> None:
    rows = read_targets(written(tmp_path, f"timestamp,target\n{times[0]},1\n{times[1]},-0.5\n"))
    assert rows.timestamp.tolist() == [1_699_999_200_000, 1_700_002_800_000]
    assert rows.target.tolist() == [1.0, -0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestamp,position\n1,1\n", "columns timestamp,target"),
        ("timestamp,target\n", "at least one row"),
        ("timestamp,target\n1700000000000,long\n", "row 2: expected a number"),
        ("timestamp,target\n1700000000000,1\n1700000000000,0\n", "row 3: timestamps must increase"),
        ("timestamp,target\nyesterday,1\n", "ISO timestamps"),
        ("", "not readable as CSV"),
    ],
)
def test_a_bad_file_is_refused_with_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TargetsError, match=message):
        read_targets(written(tmp_path, text))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TargetsError, match=r"nowhere\.csv: no such file"):
        read_targets(Path("nowhere.csv"))


def test_targets_carry_on_between_rows_and_trade_on_flips() -> None:
    rows = TargetRows(BARS[[2, 5, 7]], np.array([1.0, 1.0, 0.0]))
    targets, start = align(rows, BARS, rebalance="flips", where="X 1h")
    assert start == 2
    assert np.flatnonzero(~np.isnan(targets)).tolist() == [0, 5]
    always, _ = align(rows, BARS, rebalance="always", where="X 1h")
    assert always.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_a_timestamp_between_bars_is_refused() -> None:
    rows = TargetRows(BARS[[2]] + 1, np.array([1.0]))
    with pytest.raises(TargetsError, match=r"row 2: .* is not the open of a bar of X 1h"):
        align(rows, BARS, rebalance="flips", where="X 1h")
