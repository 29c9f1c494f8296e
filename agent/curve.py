"""What a run tells while it goes on: metrics.jsonl, TensorBoard, a line and a progress bar in the terminal."""

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from agent.evaluation import Evaluation

METRICS = "metrics.jsonl"


def evaluation_row(result: Evaluation, prior: Evaluation) -> dict[str, Any]:
    """An evaluation as entries of the curve. prior: the same network, acting without search."""
    calibration = result.calibration
    return {
        "score": result.score,
        "score_standard_error": result.standard_error,
        "prior_score": prior.score,
        "action_share": [round(float(share), 4) for share in result.action_share],
        "action_changes": result.action_changes,
        "value/bias": None if calibration is None else calibration.bias,
        "value/slope": None if calibration is None else calibration.slope,
    }


def cut_metrics(directory: Path, updates: int) -> None:
    """Drop curve points from after a checkpoint made at `updates`: the resumed run draws them again."""
    path = directory / METRICS
    if path.exists():
        rows = [line for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in rows if json.loads(line)["updates"] <= updates]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(path)


class Curve:
    """Writes the curve of a run; a context manager."""

    def __init__(
        self,
        directory: Path,
        console: Console,
        *,
        env_steps: int,
        budget: int,
        look: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """env_steps: made so far. budget: to be made in all. look: told every point, once it is written."""
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS
        self._console = console
        self._look = look
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=env_steps)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} env steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=budget, completed=env_steps)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._board.close()

    def advance(self, env_steps: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=env_steps)

    def add(self, row: dict[str, Any], *, best: bool) -> None:
        """One point. row: with env_steps, updates, seconds and the entries of `evaluation_row`."""
        with self._path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, row["env_steps"] or row["updates"])
        self._console.print(
            f"[dim]{row['seconds']:7.1f}s[/] steps {row['env_steps']:>8,}  updates {row['updates']:>6,}  "
            f"score {row['score']:+.4f} ± {row['score_standard_error']:.4f}  "
            f"loss {row.get('loss/total', float('nan')):.3f}"
            f"  codes {row.get('model/code_perplexity', float('nan')):.1f}{'  [green]best[/]' if best else ''}",
            highlight=False,
            soft_wrap=True,
        )
        if self._look is not None:
            self._look(row)
