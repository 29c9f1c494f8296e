"""Compile every kernel the image may need, by doing once what its processes do; NUMBA_CACHE_DIR says where they go.

    python deploy/compile_kernels.py MODELS

MODELS holds bundled checkpoints. What a run here writes goes to a temporary directory. A kernel that is missed is no
failure, only a slow start: tests/compose compares the cache of a container that has worked with the one baked in.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import configs
from configs.checkpoints import market_models
from data.synthetic import GENERATORS
from market_env.snapshot import AccountSnapshot
from service.model import Question, ServedModel, load_model

EXPERIMENT = Path(configs.__file__).parent / "smoke.yaml"
BATCHES = (1, 2, 64)


def main() -> None:
    """Ask every bundled model of a market, then make, train and score once."""
    [models] = [Path(argument) for argument in sys.argv[1:]]
    for make in GENERATORS.values():
        make(64, seed=1)
    for checkpoint in market_models(models):
        ask(load_model(checkpoint))
    with tempfile.TemporaryDirectory() as place:
        for command in (
            ["data", "sample", "sp500"],
            ["agent", "train", str(EXPERIMENT), "--run", "kernels", "--set", "agent.training.env_steps=1000"],
            ["backtest", "run", "--checkpoint", f"{place}/var/runs/kernels"],
        ):
            run(command, Path(place))


def ask(model: ServedModel) -> None:
    """Decisions of a bundled model, alone and in batches, from synthetic bars of its own length."""
    bars = GENERATORS["regime"](model.required_bars, seed=1, timeframe=str(model.timeframe))
    features = model.features.compute(bars)
    flat = AccountSnapshot(exposure=0.0, price=float(bars.close[-1]))
    question = Question(
        window=model.observation.window(features, len(features) - 1),
        account=model.account.observe(flat),
        simulations=None,
    )
    for batch in BATCHES:
        answers = model.decide([question] * batch)
        assert not any(isinstance(answer, Exception) for answer in answers), answers


def run(command: list[str], place: Path) -> None:
    """One of the project's commands, in `place`, where it leaves what it makes."""
    begin = time.monotonic()
    state = {name: str(place / "var" / name.lower()) for name in ("BARS", "RUNS", "STATE")}
    environment = os.environ | {f"SMU0_{name}": path for name, path in state.items()}
    subprocess.run([sys.executable, "-m", *command], cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
    print(f"{time.monotonic() - begin:5.1f} s  python -m {' '.join(command[:2])}", flush=True)


if __name__ == "__main__":
    main()
