"""The trials ledger: every look at a split leaves a line, so that the best of many is not mistaken for the first of
one.

One JSON object per line, appended under a file lock. Repeating an evaluation with the same inputs reveals nothing
new: it is written down again but counts once, which is also why a repeated run reports the same numbers.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from backtest.metrics import Floats

LEDGER = Path("var/trials.jsonl")


class TrialsLedgerError(ValueError):
    """The ledger holds a line that cannot be read."""


@dataclass(frozen=True)
class Trial:
    """One evaluation.

    key:     hash of everything that decides the outcome; equal keys are the same evaluation.
    subject: hash of what was evaluated (checkpoint and configuration, not the fill seeds).
    split:   name of the split. dataset: fingerprint of its bars.
    sharpe:  daily Sharpe ratio, not annualised; None where undefined.
    first_day: days since 1970-01-01 of the first return; returns: daily returns.
    """

    key: str
    subject: str
    dataset: str
    split: str
    sharpe: float | None
    first_day: int
    returns: tuple[float, ...]
    created: str


@dataclass(frozen=True)
class TrialStatistics:
    """What the ledger says about one split of one dataset.

    touches:  distinct evaluations, this one included.
    trials:   distinct subjects N. variance: of their daily Sharpe ratios (ddof 1; 0 for fewer than two).
    """

    touches: int
    trials: int
    variance: float


class TrialsLedger:
    """Appends to and reads a JSON-lines file; safe with several writers on one machine."""

    def __init__(self, path: Path = LEDGER) -> None:
        self.path = path

    def append(self, trial: Trial) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(trial), allow_nan=False, separators=(",", ":")) + "\n"
        with FileLock(f"{self.path}.lock"), self.path.open("ab") as file:
            # A writer that died mid-line must not swallow this line as well.
            if file.tell() and not _ends_with_newline(self.path):
                file.write(b"\n")
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Trial]:
        """All trials in order. A torn last line (a killed writer) is skipped; any other bad line raises."""
        if not self.path.exists():
            return []
        with FileLock(f"{self.path}.lock"):
            lines = self.path.read_text(encoding="utf-8").splitlines()
        trials = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                trials.append(Trial(**{**record, "returns": tuple(record["returns"])}))
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                if not line.rstrip().endswith("}"):
                    continue
                raise TrialsLedgerError(
                    f"{self.path} line {number}: expected one trial as JSON, found {line[:60]!r}. "
                    "Correct or remove the line; every trial counts against the Deflated Sharpe ratio."
                ) from error
        return trials


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def on_split(trials: Sequence[Trial], *, dataset: str, split: str) -> list[Trial]:
    """Distinct evaluations of one split, in order of their first occurrence."""
    distinct: dict[str, Trial] = {}
    for trial in trials:
        if trial.dataset == dataset and trial.split == split:
            distinct.setdefault(trial.key, trial)
    return list(distinct.values())


def statistics(trials: Sequence[Trial], *, dataset: str, split: str) -> TrialStatistics:
    """Touches, number of trials and variance of their Sharpe ratios, for the Deflated Sharpe ratio."""
    here = on_split(trials, dataset=dataset, split=split)
    latest = {trial.subject: trial.sharpe for trial in here}
    known = np.array([sharpe for sharpe in latest.values() if sharpe is not None])
    variance = float(known.var(ddof=1)) if len(known) > 1 else 0.0
    return TrialStatistics(touches=len(here), trials=len(latest), variance=variance)


def return_panel(trials: Sequence[Trial], *, dataset: str, split: str) -> Floats | None:
    """[D, M] daily returns of distinct subjects over the same days, or None where fewer than two share them."""
    latest = {trial.subject: trial for trial in on_split(trials, dataset=dataset, split=split)}
    groups: dict[tuple[int, int], list[Trial]] = {}
    for trial in latest.values():
        groups.setdefault((trial.first_day, len(trial.returns)), []).append(trial)
    widest = max(groups.values(), key=len, default=[])
    if len(widest) < 2:
        return None
    return np.column_stack([np.array(trial.returns) for trial in widest])
