"""Training on many processes or machines with Ray: the classes of one-process training, each in an actor of its own.

    driver ──orders──▶ self-play actors ──chunks──▶ replay ──batches──▶ learner
      ▲                      ▲                                            │
      └── counters, curve    └──────────── weights, one flat array ───────┘──▶ evaluator

The driver gives orders and reads small replies; chunks, batches and weights go from process to process through the
object store and never through it. Every reply is waited for together with all others, so the loss of a process is one
more reply: a self-play actor, the evaluator and the replay are replaced, and the run goes on. The learner holds what
cannot be made again, so without it the run stops and says how to resume.

cluster.py is where the processes are, workers.py what runs in them, trainer.py the driver. This package and agent.tune
alone import Ray, and only when it is used.
"""

from agent.distributed.cluster import OBJECT_STORE_BYTES, Cluster, RayMissing, connect, require_ray
from agent.distributed.trainer import DistributedTrainer, RunStopped, actors_of
from agent.distributed.workers import (
    Drawn,
    EvaluatorWorker,
    Gathered,
    LearnerWorker,
    Places,
    ReplayWorker,
    Searched,
    SelfPlayWorker,
)

__all__ = [
    "OBJECT_STORE_BYTES",
    "Cluster",
    "DistributedTrainer",
    "Drawn",
    "EvaluatorWorker",
    "Gathered",
    "LearnerWorker",
    "Places",
    "RayMissing",
    "ReplayWorker",
    "RunStopped",
    "Searched",
    "SelfPlayWorker",
    "actors_of",
    "connect",
    "require_ray",
]
