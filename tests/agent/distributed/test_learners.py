"""Several learners are one learner with a larger batch; a compiled one is the same one, faster."""

import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from agent.config import LearnerConfig, NetworkConfig, ReplayConfig
from agent.learner import Learner
from agent.networks.flat import flat_weights
from agent.networks.model import StochasticMuZero
from agent.replay import Batch, Record, Replay

NETWORK = NetworkConfig(width=16, encoder_width=16, latent=8, hidden=16, codes=4, support_atoms=11)
UPDATES = 3


def _batches() -> list[Batch]:
    rng = np.random.default_rng(0)
    shapes = {"observation": ((5,), np.dtype(np.float32))}
    replay = Replay(ReplayConfig(capacity_steps=400), rows=4, actions=3, observations=shapes, discount=0.9)
    for _ in range(60):
        replay.add(
            Record(
                observations={"observation": rng.normal(size=(4, 5)).astype(np.float32)},
                action=rng.integers(3, size=4),
                reward=rng.normal(size=4).astype(np.float32),
                terminated=np.zeros(4, bool),
                has_transition=np.ones(4, bool),
                action_mask=np.ones((4, 3), bool),
                policy=np.full((4, 3), 1 / 3, np.float32),
                root_value=np.zeros(4, np.float32),
                trust=np.ones(4, np.float32),
            )
        )
    return [replay.sample(32, 5, rng) for _ in range(UPDATES)]


def _learner(seed: int, **changes: Any) -> Learner:
    torch.manual_seed(seed)
    model = StochasticMuZero({"observation": (5,)}, 3, NETWORK)
    parallel = changes.pop("parallel", False)
    config = LearnerConfig.model_validate({"batch_size": 32, "gradient_clip": 1e9, **changes})
    return Learner(model, config, decode=lambda entries: entries, device=torch.device("cpu"), parallel=parallel)


def _part(batch: Batch, start: int, stop: int) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    observations = {name: entry[start:stop] for name, entry in values.pop("observations").items()}
    return Batch(observations=observations, **{name: value[start:stop] for name, value in values.items()})


def _gradients(learner: Learner) -> Any:
    return np.concatenate([parameter.grad.numpy().ravel() for parameter in learner.model.parameters()])


def _learn_half(rank: int, port: int, out: str, precision: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    learner = _learner(7 if rank == 0 else 8, parallel=True, precision=precision)  # the first one's weights count
    first, *others = [_part(batch, 16 * rank, 16 * (rank + 1)) for batch in _batches()]
    learner.update(first)
    np.save(f"{out}.gradients.{rank}.npy", _gradients(learner))
    for batch in others:
        learner.update(batch)
    np.save(f"{out}.weights.{rank}.npy", flat_weights(learner.model))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_two_learners_with_half_a_batch_each_have_the_gradient_of_one_with_all_of_it(
    tmp_path: Path, precision: str, tolerance: float
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    out = str(tmp_path / "out")
    halves = [context.Process(target=_learn_half, args=(rank, port, out, precision)) for rank in range(2)]
    for process in halves:
        process.start()
    alone = _learner(7, precision=precision)
    half = _learner(7, precision=precision)
    batch = _batches()[0]
    alone.update(batch)
    half.update(_part(batch, 0, 16))
    for process in halves:
        process.join(900)
        assert process.exitcode == 0
    found = [np.load(f"{out}.gradients.{rank}.npy") for rank in range(2)]
    expected = _gradients(alone)
    assert np.array_equal(*found)
    assert np.array_equal(*[np.load(f"{out}.weights.{rank}.npy") for rank in range(2)]), "and go on together"
    error = np.linalg.norm(found[0] - expected) / np.linalg.norm(expected)
    assert error < tolerance
    assert error < 0.2 * np.linalg.norm(_gradients(half) - expected) / np.linalg.norm(expected), "half is not all"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_compiled_learner_learns_the_same() -> None:
    plain, compiled = _learner(7), _learner(7, compile=True)
    for batch in _batches():
        expected, _ = plain.update(batch)
        found, _ = compiled.update(batch)
        assert found["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-4)
    assert np.abs(flat_weights(plain.model) - flat_weights(compiled.model)).max() < 1e-4
