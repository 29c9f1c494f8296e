"""A checkpoint is whole or refused, and the one before it is never lost."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.checkpoint import (
    SCHEMA_VERSION,
    CheckpointError,
    CheckpointMetadata,
    Counters,
    TrainingState,
    load_model,
    load_policy,
    load_training_arrays,
    read_metadata,
    save_checkpoint,
)
from agent.config import AgentConfig, NetworkConfig
from agent.networks.model import StochasticMuZero
from agent.search import SearchConfig

SHAPES = {"window": (4, 2), "account": (3,)}
AGENT = AgentConfig(
    network=NetworkConfig(width=16, encoder_width=8, latent=8, hidden=16, codes=4, support_atoms=11),
    search=SearchConfig(simulations=8),
)


def _model(seed: int = 0) -> StochasticMuZero:
    torch.manual_seed(seed)
    return StochasticMuZero(SHAPES, 3, AGENT.network)


def _save(root: Path, *, updates: int = 1, seed: int = 0, training: TrainingState | None = None) -> Path:
    metadata = CheckpointMetadata(
        code_version="test",
        agent=AGENT,
        observation_shapes=SHAPES,
        actions=3,
        counters=Counters(updates=updates),
    )
    return save_checkpoint(root, "latest", _model(seed), metadata, training)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    state = TrainingState({"replay.x": np.arange(5)}, {"owed": 0.25})
    _save(tmp_path, training=state)
    metadata = read_metadata(tmp_path / "latest")
    loaded = load_model(tmp_path / "latest", metadata)
    for name, tensor in _model().state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert metadata.agent == AGENT
    assert metadata.state == {"owed": 0.25}
    np.testing.assert_array_equal(load_training_arrays(tmp_path / "latest")["replay.x"], np.arange(5))


@pytest.mark.parametrize("name", ["weights.safetensors", "training.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_file_is_refused_and_the_previous_checkpoint_named(tmp_path: Path, name: str, damage: str) -> None:
    state = TrainingState({"x": np.arange(5)}, {})
    _save(tmp_path, updates=1, training=state)
    newest = _save(tmp_path, updates=2, seed=1, training=state)
    content = bytearray((newest / name).read_bytes())
    if damage == "missing":
        (newest / name).unlink()
    else:
        content[-1] ^= 1
        (newest / name).write_bytes(bytes(content) if damage == "changed" else bytes(content[:-3]))
    with pytest.raises(CheckpointError, match=r"latest-000000001"):
        read_metadata(tmp_path / "latest")
    read_metadata(tmp_path / "latest-000000001")  # and that one is whole


def test_a_checkpoint_without_its_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint directory"):
        load_policy(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path) / "checkpoint.json"
    raw = json.loads(path.read_text())
    raw["schema_version"] = 99
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=f"expected schema_version {SCHEMA_VERSION}, found 99"):
        read_metadata(path.parent)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    directory = _save(tmp_path)
    metadata = read_metadata(directory)
    other = metadata.model_copy(update={"actions": 4})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_model(directory, other)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = _model()
    with torch.no_grad():
        model.core.value_head.bias[0] = float("nan")
    metadata = read_metadata(_save(tmp_path / "good"))
    directory = save_checkpoint(tmp_path / "bad", "best", model, metadata)
    with pytest.raises(CheckpointError, match=r"core\.value_head\.bias holds NaN"):
        load_policy(directory)


def test_only_the_newest_are_kept_and_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".latest-000000001.tmp-1").mkdir(parents=True)
    for updates in (1, 2, 3, 3):
        _save(tmp_path, updates=updates)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "latest-000000003", "latest-000000003+"]
    assert (tmp_path / "latest").resolve().name == "latest-000000003+"


def test_a_checkpoint_for_use_cannot_be_resumed_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        load_training_arrays(_save(tmp_path))


def test_a_loaded_policy_decides_alike_in_any_batch(tmp_path: Path) -> None:
    policy = load_policy(_save(tmp_path))
    rng = np.random.default_rng(0)
    observations = {name: rng.standard_normal((9, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    together = policy.act(observations)
    for row in range(9):
        alone = policy.act({name: entry[row : row + 1] for name, entry in observations.items()})
        assert alone.action[0] == together.action[row]
        np.testing.assert_array_equal(alone.q_values[0], together.q_values[row])
        np.testing.assert_array_equal(alone.value[0], together.value[row])
    assert together.visits.sum(axis=1).tolist() == [8] * 9
    np.testing.assert_allclose(together.policy.sum(axis=1), 1.0, rtol=1e-6)


def test_zero_simulations_act_by_the_prior(tmp_path: Path) -> None:
    policy = load_policy(_save(tmp_path))
    observations = {name: np.ones((1, *shape), np.float32) for name, shape in SHAPES.items()}
    decision = policy.act(observations, simulations=0, action_mask=np.array([[False, True, True]]))
    assert decision.action[0] == decision.prior[0].argmax()
    assert decision.prior[0, 0] == 0.0


def test_a_nan_in_an_observation_is_named(tmp_path: Path) -> None:
    policy = load_policy(_save(tmp_path))
    observations = {name: np.ones((2, *shape), np.float32) for name, shape in SHAPES.items()}
    observations["account"][1, 2] = np.nan
    with pytest.raises(ValueError, match="observation 'account', row 1: expected finite"):
        policy.act(observations)
