"""Checkpoints that describe themselves: a directory of safetensors and JSON, never pickle.

    checkpoint.json      what the weights are, what they need, and the hash of every file beside it
    weights.safetensors  the model
    training.safetensors optimiser, replay and environments: only in `latest`, for resuming

Directories are written under a temporary name, flushed, renamed, and only then pointed to by a symlink that is
replaced atomically. A process killed at any moment leaves the previous checkpoint intact.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from agent.config import AgentConfig
from agent.networks.model import StochasticMuZero
from agent.search_policy import SearchPolicy

SCHEMA_VERSION = 2  # 2: the chance encoder reads the difference of two observations too
METADATA = "checkpoint.json"
WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or made for something else."""


class CodeMeaning(BaseModel):
    """What one chance code has meant in the training data: the outcomes it stood for, in the environment's unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: int
    count: int = Field(description="transitions that were given this code")
    mean: float
    quantiles: dict[str, float] = Field(description='outcome quantiles by name, "0.05" to "0.95"')


class Counters(BaseModel):
    """How far training had come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env_steps: int = 0
    updates: int = 0
    seconds: float = Field(0.0, description="wall-clock seconds of training, over all resumptions")


class CheckpointMetadata(BaseModel):
    """The JSON beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    code_version: str
    agent: AgentConfig
    observation_shapes: dict[str, tuple[int, ...]]
    actions: int = Field(description="numbers the policy consists of: actions, or categories of all their parts")
    action_factors: tuple[int, ...] = Field((), description="categories of each part of an action; none: one choice")
    counters: Counters
    score: float | None = Field(None, description="mean validation return per episode")
    experiment: dict[str, Any] = Field(default_factory=dict, description="the resolved experiment, as its YAML says")
    feature_fingerprint: str | None = None
    data_fingerprint: str | None = Field(None, description="of the bars trained on")
    code_statistics: list[CodeMeaning] = Field(default_factory=list)
    state: dict[str, Any] = Field(default_factory=dict, description="random states and bookkeeping of a resumable run")
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of each file beside this one")


@dataclass(frozen=True)
class TrainingState:
    """What resuming needs beyond the weights: arrays by name, and JSON-able bookkeeping."""

    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    bookkeeping: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(
    root: Path,
    link: str,
    model: StochasticMuZero,
    metadata: CheckpointMetadata,
    training: TrainingState | None = None,
    *,
    keep: int = 2,
) -> Path:
    """Write a checkpoint under `root` and point `root/link` to it. Returns the directory it lies in.

    keep: how many of this link's directories stay; one more than the newest, so a damaged one has a predecessor.
    """
    root.mkdir(parents=True, exist_ok=True)
    name = f"{link}-{metadata.counters.updates:09d}"
    temporary = root / f".{name}.tmp-{os.getpid()}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    save_tensors({key: value.contiguous().cpu() for key, value in model.state_dict().items()}, temporary / WEIGHTS)
    if training is not None:
        arrays = {key: np.asarray(value, order="C") for key, value in training.arrays.items()}
        save_arrays(arrays, temporary / TRAINING)
        metadata = metadata.model_copy(update={"state": dict(training.bookkeeping)})
    files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    text = metadata.model_copy(update={"files": files}).model_dump_json(indent=1)
    (temporary / METADATA).write_text(text)
    for path in temporary.iterdir():
        _flush(path)
    _flush(temporary)
    final = root / name
    while final.exists():  # the same update saved again after a resume: never touch what `link` points to
        final = final.with_name(f"{final.name}+")
    temporary.rename(final)
    pointer = root / f".{link}.tmp-{os.getpid()}"
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(final.name)
    pointer.replace(root / link)
    _flush(root)
    _prune(root, link, keep)
    return final


def read_metadata(path: Path) -> CheckpointMetadata:
    """The JSON of a checkpoint directory, after its files were compared with their hashes.

    Raises CheckpointError saying what is wrong and what to do.
    """
    file = path / METADATA
    if not file.is_file():
        raise CheckpointError(
            f"{path}: expected a checkpoint directory with {METADATA}, found none. "
            f'Train one with "python -m agent train CONFIG"'
        )
    try:
        raw = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}). {_previous(path)}") from error
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file}: expected schema_version {SCHEMA_VERSION}, found {found}. Use the version of smu0 that wrote "
            f"it, or train again"
        )
    try:
        metadata = CheckpointMetadata.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{file}: field {where}: {first['msg']}. {_previous(path)}") from error
    if WEIGHTS not in metadata.files:
        raise CheckpointError(f"{file}: expected the hash of {WEIGHTS}, found none. {_previous(path)}")
    for name, digest in metadata.files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing. {_previous(path)}")
        if _sha256(path / name) != digest:
            raise CheckpointError(
                f"{path / name}: its sha256 is not the one in {METADATA}; the file is truncated or was changed. "
                f"{_previous(path)}"
            )
    return metadata


def load_model(path: Path, metadata: CheckpointMetadata) -> StochasticMuZero:
    """The model a checkpoint describes, with its weights. Raises CheckpointError."""
    model = StochasticMuZero(
        metadata.observation_shapes, metadata.actions, metadata.agent.network, metadata.action_factors
    )
    try:
        model.load_state_dict(load_tensors(path / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path / WEIGHTS}: does not fit the model it describes ({reason})") from error
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path / WEIGHTS}: {name} holds NaN or infinity. {_previous(path)}")
    return model


def load_training_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Arrays of a resumable checkpoint. Raises CheckpointError when it was not saved for resuming."""
    if not (path / TRAINING).is_file():
        raise CheckpointError(
            f"{path}: cannot be resumed from, it has no {TRAINING}. Resume a run directory, whose "
            f"checkpoints/latest has one"
        )
    arrays: dict[str, NDArray[np.generic]] = load_arrays(path / TRAINING)
    return arrays


class CheckpointPolicy(SearchPolicy):
    """A `SearchPolicy` that knows where it comes from."""

    def __init__(self, model: StochasticMuZero, metadata: CheckpointMetadata) -> None:
        super().__init__(model, metadata.agent.search)
        self.metadata = metadata

    @property
    def code_statistics(self) -> list[CodeMeaning]:
        """What each chance code has meant in training."""
        return self.metadata.code_statistics


def load_policy(path: Path | str) -> CheckpointPolicy:
    """The greedy policy of a checkpoint directory. Raises CheckpointError."""
    path = Path(path)
    metadata = read_metadata(path)
    return CheckpointPolicy(load_model(path, metadata), metadata)


def _previous(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    resolved = path.resolve()
    link = resolved.name.rsplit("-", 1)[0]
    others = sorted(other.name for other in resolved.parent.glob(f"{link}-*") if other.name < resolved.name)
    if others:
        return f"An earlier one is {others[-1]} in the same place: pass it instead"
    return "There is no earlier one in the same place: restore it or train again"


def _prune(root: Path, link: str, keep: int) -> None:
    for old in sorted(root.glob(f"{link}-*"))[:-keep]:
        shutil.rmtree(old)
    for leftover in root.glob(f".{link}-*.tmp-*"):  # of a process that was killed while writing
        shutil.rmtree(leftover)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """fsync a file or a directory entry."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
