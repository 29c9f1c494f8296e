"""Targets decided elsewhere: a CSV of `timestamp,target`, traded on given bars like any policy's decisions.

A row's timestamp is the *open* of the bar at whose close the target was decided; it fills from the next bar's open.
Bars without a row carry the last target on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from backtest.baselines import changes_only, held_position
from backtest.metrics import Floats, Ints
from backtest.runner import Sizing

SIZINGS: dict[str, Sizing] = {"units": "units", "fraction": "exposure", "allin": "all_in"}
Rebalance = Literal["flips", "always"]


class TargetsError(ValueError):
    """The targets file cannot be traded as it is."""


@dataclass(frozen=True)
class TargetRows:
    """Decided targets: timestamp [M] (bar opens, epoch ms, increasing), target [M]."""

    timestamp: Ints
    target: Floats


def read_targets(path: Path) -> TargetRows:
    """Read and check a targets CSV; timestamps as ISO text or as epoch seconds or milliseconds."""
    try:
        frame = pd.read_csv(path)
    except FileNotFoundError as error:
        raise TargetsError(f"{path}: no such file. Expected a CSV with the columns timestamp,target.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise TargetsError(f"{path}: not readable as CSV ({error}). Expected the columns timestamp,target.") from error
    missing = {"timestamp", "target"} - set(frame.columns)
    if missing or frame.empty:
        found = ", ".join(map(str, frame.columns)) or "nothing"
        raise TargetsError(f"{path}: expected the columns timestamp,target and at least one row, found {found}.")
    target = pd.to_numeric(frame["target"], errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(target).all():
        row = int(np.argmin(np.isfinite(target)))
        raise TargetsError(
            f"{path} row {row + 2}: expected a number as target, found {frame['target'].iloc[row]!r}. "
            "Leave the row out where no decision was taken."
        )
    time = _milliseconds(frame["timestamp"], path)
    if (np.diff(time) <= 0).any():
        row = int(np.argmax(np.diff(time) <= 0)) + 1
        raise TargetsError(f"{path} row {row + 2}: timestamps must increase; {frame['timestamp'].iloc[row]} does not.")
    return TargetRows(time, target)


def _milliseconds(column: pd.Series, path: Path) -> Ints:
    """Epoch milliseconds of ISO texts (UTC where they name no zone) or of epoch seconds or milliseconds."""
    if pd.api.types.is_numeric_dtype(column):
        # 1e11 s is the year 5138 and 1e11 ms is 1973: no bar of either kind lies on the wrong side.
        scale = 1000 if float(column.abs().max()) < 1e11 else 1
        return np.asarray(np.round(column.to_numpy(dtype=np.float64) * scale), dtype=np.int64)
    try:
        moments = pd.to_datetime(column, utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise TargetsError(
            f"{path}: expected ISO timestamps or epoch (milli)seconds, found {column.iloc[0]!r} ({error})."
        ) from error
    return np.asarray(moments.astype("datetime64[ms, UTC]").astype("int64"), dtype=np.int64)


def align(rows: TargetRows, timestamp: Ints, *, rebalance: Rebalance, where: str) -> tuple[Floats, int]:
    """Targets on a market's bars: ([N] from the first decided bar on, index of that bar).

    timestamp: [all bars]. rebalance: "always" asks for the target anew at every bar, "flips" only where it changes.
    Raises TargetsError for a timestamp that is not the open of a bar.
    """
    place = np.searchsorted(timestamp, rows.timestamp)
    inside = place < len(timestamp)
    known = np.zeros(len(place), dtype=bool)
    known[inside] = timestamp[place[inside]] == rows.timestamp[inside]
    if not known.all():
        row = int(np.argmin(known))
        moment = np.datetime64(int(rows.timestamp[row]), "ms")
        first, last = (np.datetime64(int(timestamp[i]), "ms") for i in (0, -1))
        raise TargetsError(
            f"Targets row {row + 2}: {moment} is not the open of a bar of {where} ({first} to {last}). "
            "Use the opening times of the bars that were decided on."
        )
    start = int(place[0])
    decided = np.full(len(timestamp) - start, np.nan)
    decided[place - start] = rows.target
    position = held_position(decided)
    return (changes_only(position) if rebalance == "flips" else position), start
