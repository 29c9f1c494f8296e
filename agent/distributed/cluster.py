"""Where a distributed run runs: the Ray cluster, joined or started here, and what is asked of Ray itself."""

import importlib.util
import os
import socket
from dataclasses import dataclass

OBJECT_STORE_BYTES = 200 * 1024**2  # of a cluster started here
_LOCAL = "127.0.0.1"


class RayMissing(RuntimeError):
    """Ray is not installed."""


@dataclass(frozen=True)
class Cluster:
    """Where a distributed run runs.

    address: `local` starts Ray on this machine, on loopback only; `auto` joins a cluster that runs, else the same;
             anything else is the address of one (HOST:PORT).
    actors:  self-play actors; None: as many as there are processors left beside the learner.
    learners: processes that share each update's batch and average their gradients (DDP).
    chunk:   steps of each environment in one order to an actor; None: about the experience that pays for 16 updates.
    """

    address: str = "local"
    actors: int | None = None
    learners: int = 1
    chunk: int | None = None


def require_ray() -> None:
    """Raises RayMissing where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise RayMissing(
            "training on several processes and tuning need Ray, found none. Install it with "
            'pip install "smu0[ray]" (in a checkout: pip install -e ".[ray]"), or train without --ray'
        )


def connect(cluster: Cluster) -> bool:
    """Join the cluster or start one on this machine. Returns whether it was started here. Raises RayMissing, and
    ConnectionError when there is none at the address."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    if cluster.address != "local":
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            return False
        except ConnectionError as error:
            if cluster.address != "auto":
                raise ConnectionError(
                    f"--ray {cluster.address}: expected a Ray cluster there, found none ({error}). Start one with "
                    f'"ray start --head", or use --ray local'
                ) from error
    actors = cluster.actors or max(1, (os.cpu_count() or 1) - cluster.learners)
    ray.init(
        address="local",
        # Processes wait more than they work on a small machine: there is room for as many as the run needs.
        num_cpus=actors + cluster.learners + 1,
        include_dashboard=False,
        _node_ip_address=_LOCAL,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        # Processes would report every call to Ray's control process, which keeps the last 100,000 for a dashboard that
        # nobody looks at here (docs/scaling.md, "Memory").
        _system_config={"task_events_report_interval_ms": 0},
    )
    return True


def is_loss(failure: BaseException) -> bool:
    """Whether a Ray error says that a process, a node or an object is gone, rather than that code has raised."""
    import ray

    if isinstance(failure, ray.exceptions.RayTaskError):
        cause = getattr(failure, "cause", None)
        return isinstance(cause, ray.exceptions.RayError) and is_loss(cause)
    return isinstance(failure, ray.exceptions.RayError)


def node_id() -> str:
    """The node this process runs on, as Ray names it."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def own_address() -> str:
    """The address other nodes reach this process under."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def resources() -> dict[str, float]:
    """What the cluster has: "CPU", "GPU" and so on."""
    import ray

    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
