"""What training on many processes costs, gains, and would gain with more of them.

    python -m benchmarks.scaling costs                    every step and message, timed here; the prediction from them
    python -m benchmarks.scaling runs                     one process against 1 and 2 actors, on the regime market
    python -m benchmarks.scaling memory --minutes 60      memory of every process of a run, once a minute
    ... [--quick] [--json]

Costs are CPU seconds of one process where work is meant, wall-clock where a message's way is. Runs are scored as in
benchmarks.learning: (agent − flat) / (optimum − flat) at equal environment steps.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]
SETTING = "regime_base"
PREDICTED_ACTORS = (1, 2, 8, 64, 512)
MESSAGES_PER_CHUNK = 2  # calls of the driver for each: gather and add
BATCHES_AHEAD = 3  # as agent.distributed asks for
LAST_SAID = 20_000  # bytes of a failed run's output that are worth showing


# --- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Seconds, and bytes, of one of each.

    act: an environment step in self-play, its share of second lives included. load: taking up new weights.
    add: a step into the replay. sample: drawing a batch with its targets. update: learning from it.
    call: the driver's own time for one call with its reply. way: a batch's way from the replay to the learner, beyond
    the drawing. chunk_bytes, weight_bytes, batch_bytes: what travels per environment step, publication and batch.
    """

    act: float
    load: float
    add: float
    sample: float
    update: float
    call: float
    way: float
    step_bytes: float
    weight_bytes: float
    batch_bytes: float


@dataclass(frozen=True)
class Plan:
    """actors: self-play processes with a processor each. chunk_steps: environment steps per order. updates_per_step:
    of the configuration. learner_speed: how many times faster an update is than measured (a GPU). bandwidth: bytes/s
    into and out of the replay's machine."""

    actors: int
    chunk_steps: int
    updates_per_step: float
    learner_speed: float = 1.0
    bandwidth: float = 1.25e9  # 10 Gbit/s


def limits(costs: Costs, plan: Plan) -> dict[str, float]:
    """Environment steps per second that each part could sustain if the others were infinitely fast."""
    updates = plan.updates_per_step
    update = costs.update / plan.learner_speed
    # Several batches are on their way at once, beside the update; the replay draws them one after the other.
    per_update = max(update, costs.sample, (costs.sample + costs.way) / BATCHES_AHEAD)
    traffic = costs.step_bytes + updates * costs.batch_bytes + costs.weight_bytes / plan.chunk_steps
    return {
        "actors": plan.actors / (costs.act + costs.load / plan.chunk_steps),
        "replay": 1.0 / (costs.add + updates * costs.sample),
        "learner": 1.0 / (updates * per_update),
        "driver": plan.chunk_steps / (MESSAGES_PER_CHUNK * costs.call),
        "network": plan.bandwidth / traffic,
    }


def predict(costs: Costs, plan: Plan) -> tuple[float, str]:
    """Environment steps per second, and the part that bounds them."""
    found = limits(costs, plan)
    bottleneck = min(found, key=lambda name: found[name])
    return found[bottleneck], bottleneck


# --- costs ---------------------------------------------------------------------------------------------------------


def timed(task: Callable[[], object], *, repeats: int, clock: Callable[[], float] = time.process_time) -> list[float]:
    """Seconds of one call, in each of five rounds."""
    task()
    rounds = []
    for _ in range(5):
        started = clock()
        for _ in range(repeats):
            task()
        rounds.append((clock() - started) / repeats)
    return rounds


def measure(*, quick: bool) -> tuple[dict[str, list[float]], Json]:
    """Every cost in rounds, and the sizes that belong to them."""
    import torch

    from agent.config import AgentConfig
    from agent.distributed import LearnerWorker, ReplayWorker, SelfPlayWorker
    from agent.flow import Accepted
    from agent.networks.flat import flat_weights
    from benchmarks.learning import CONFIG, SETTINGS, Verification

    torch.set_num_threads(1)
    config = AgentConfig.model_validate(CONFIG)
    envs = Verification(SETTINGS[SETTING])
    steps = 2 if quick else 8
    rows = config.self_play.num_envs
    actor = SelfPlayWorker(envs, config, seed=0)
    weights = flat_weights(actor._model)
    first, second, _ = actor.gather(weights, 64, 0)
    replay = ReplayWorker(envs, config, rings=2, seed=0, before=Accepted())
    for ring in range(2):
        for _ in range(4):
            replay.add(ring, 0, first, second)
    learner = LearnerWorker(envs, config, seed=0)
    learner.prepare("")
    _, batch = replay.sample(0)
    few = 3 if quick else 20
    rounds = {
        "act": [s / (steps * rows) for s in timed(lambda: actor.gather(weights, steps, 0), repeats=2)],
        "load": timed(lambda: actor._load(weights), repeats=few),
        "add": [s / (64 * rows) for s in timed(lambda: replay.add(0, 0, first, second), repeats=few)],
        "sample": timed(lambda: replay.sample(0), repeats=few),
        "update": timed(lambda: learner.fitter.update(batch), repeats=few),
    }
    rounds |= _message_costs(batch, quick=quick)
    sizes = {
        "step_bytes": sum(a.nbytes for part in (first, second) for a in part.values()) / (64 * rows),
        "weight_bytes": weights.nbytes,
        "batch_bytes": sum(
            a.nbytes for a in (*batch.observations.values(), *(v for v in vars(batch).values() if hasattr(v, "nbytes")))
        ),
    }
    return rounds, sizes


class _Echo:
    """Gives back what it holds; a process at the other end of a message."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def nothing(self) -> None:
        return None

    def held(self) -> Any:
        return self._held


def _message_costs(batch: Any, *, quick: bool) -> dict[str, list[float]]:
    """Ray's own: a call as the driver's processor time, and a batch's way as wall-clock."""
    from agent.distributed import Cluster, connect

    connect(Cluster(actors=1))
    import ray

    other = ray.remote(num_cpus=0.5)(_Echo).remote(batch)
    ray.get(other.nothing.remote())
    many = 20 if quick else 200

    def calls() -> None:
        ray.get([other.nothing.remote() for _ in range(many)])

    call = [s / many for s in timed(calls, repeats=1)]
    way = timed(lambda: ray.get(other.held.remote()), repeats=5 if quick else 50, clock=time.perf_counter)
    ray.shutdown()
    return {"call": call, "way": way}


def report_costs(*, quick: bool) -> Json:
    """Costs and predictions as metrics."""
    from benchmarks.learning import CONFIG

    rounds, sizes = measure(quick=quick)
    metrics: Json = {
        f"{name}_seconds": {"value": statistics.median(r), "unit": "s", "low": min(r), "high": max(r)}
        for name, r in rounds.items()
    }
    metrics |= {name: {"value": value, "unit": "bytes", "low": None, "high": None} for name, value in sizes.items()}
    costs = Costs(**{name: statistics.median(r) for name, r in rounds.items()}, **sizes)
    rows, price = CONFIG["self_play"]["num_envs"], CONFIG["learner"]["updates_per_env_step"]
    predictions = []
    for speed in (1.0, 10.0):
        for actors in PREDICTED_ACTORS:
            plan = Plan(actors=actors, chunk_steps=6 * rows, updates_per_step=price, learner_speed=speed)
            rate, bottleneck = predict(costs, plan)
            predictions.append({**asdict(plan), "env_steps_per_s": rate, "bottleneck": bottleneck})
            metrics[f"predicted_env_steps_per_s_{actors}_actors_learner_x{speed:g}"] = {
                "value": rate, "unit": "1/s", "low": None, "high": None,
            }  # fmt: skip
    return {"metrics": metrics, "predictions": predictions, "costs": asdict(costs)}


# --- runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run. actors: 0 trains in one process. envs: environments of each actor, None as configured."""

    actors: int
    seed: int
    env_steps: int
    envs: int | None = None

    @property
    def name(self) -> str:
        """What the table calls it."""
        if not self.actors:
            return "one_process"
        return f"{self.actors}_actors" + ("" if self.envs is None else f"_of_{self.envs}")


def one_run(job: Job) -> Json:
    """Train once and score the result. Returns what the table needs, the curve included."""
    from agent.checkpoint import load_policy
    from agent.config import AgentConfig
    from agent.curve import METRICS
    from agent.distributed import Cluster, DistributedTrainer
    from agent.planner import Planner
    from agent.policy import Observations
    from agent.search_policy import SearchPolicy
    from agent.train import RunSettings, Trainer
    from benchmarks.learning import CONFIG, SETTINGS, Verification, merged, relative, score

    changes: Json = {"training": {"env_steps": job.env_steps, "evaluate_every": 800}}
    if job.envs is not None:
        changes["self_play"] = {"num_envs": job.envs}
    config = AgentConfig.model_validate(merged(CONFIG, changes))
    setting = SETTINGS[SETTING]
    with tempfile.TemporaryDirectory() as directory:
        settings = RunSettings(directory=Path(directory), seed=job.seed, code_version="benchmark")
        started, meter = time.perf_counter(), Meter()
        if job.actors:
            many = DistributedTrainer(config, Verification(setting), settings, Cluster(actors=job.actors))
            many.run()
            counted = many.env_steps, many.updates, many.seconds
            evaluation_seed = many.evaluation_seed
            many.close()
        else:
            single = Trainer(config, Verification(setting), settings)
            single.run()
            counted = single.actor.env_steps, single.learner.updates, single.seconds
            evaluation_seed = single.validation_seed
        whole, spent = time.perf_counter() - started, meter.read()
        policy: SearchPolicy = load_policy(Path(directory) / "checkpoints" / "latest")
        rows = [json.loads(line) for line in (Path(directory) / METRICS).read_text().splitlines()]
    planner = Planner(policy.model, config.search)

    def act(observations: Any) -> Any:
        entries: Observations = {"observation": observations}
        return planner.plan(entries, action_mask=None)[0].action.astype(np.int64)

    final = score(setting, act, job.seed)
    steps, updates, seconds = counted
    points = [{name: row[name] for name in ("env_steps", "score")} for row in rows]
    points = relative(points, setting, evaluation_seed)
    return {
        **asdict(job), "env_steps": steps, "updates": updates, "seconds": seconds,
        "start_seconds": whole - seconds, "score": final["score"], "standard_error": final["standard_error"],
        "load": os.getloadavg()[0], "processor_seconds": spent,
        "curve": [[point["env_steps"], round(point["score"], 3)] for point in points],
    }  # fmt: skip


def report_runs(jobs: list[Job], *, out: Path | None = None) -> Json:
    """Every run in a process of its own. out: a file that takes every run as a line of JSON as soon as it is done."""
    rows = []
    # Ray makes its workers nicer than their driver by 15, which on a machine shared with others is another machine.
    equal = {**os.environ, "RAY_worker_niceness": "0"}
    for job in jobs:
        command = [sys.executable, "-m", "benchmarks.scaling", "--job", json.dumps(asdict(job))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=equal)
        rows.append({"name": job.name, **json.loads(done.stdout.splitlines()[-1])})
        print(f"{rows[-1]}", file=sys.stderr, flush=True)
        if out is not None:
            with out.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
    metrics: Json = {}
    for name in dict.fromkeys(job.name for job in jobs):
        own = [row for row in rows if row["name"] == name]
        for what, values in (
            ("score", [r["score"] for r in own]),
            ("env_steps_per_s", [r["env_steps"] / r["seconds"] for r in own]),
            ("updates_per_s", [r["updates"] / r["seconds"] for r in own]),
            ("start_seconds", [r["start_seconds"] for r in own]),
            *(
                (f"processor_seconds_{kind}", [r["processor_seconds"].get(kind, 0.0) for r in own])
                for kind in sorted({kind for r in own for kind in r["processor_seconds"]})
            ),
        ):
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else own[0]["standard_error"]
            metrics[f"{what}_{name}"] = {
                "value": statistics.mean(values), "unit": "1", "low": min(values), "high": max(values),
                "standard_error": error if what == "score" else None,
            }  # fmt: skip
    return {"metrics": metrics, "runs": rows}


# --- memory --------------------------------------------------------------------------------------------------------


def processes(root: int) -> Iterator[tuple[int, str]]:
    """Every process under `root`, itself included, with what it is called."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        waiting += parents.get(pid, [])
        try:
            title = (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if pid == root:
            yield pid, "driver"
        elif title.startswith("ray::"):
            yield pid, title.removeprefix("ray::").split(".")[0].split(":")[0]
        else:
            yield pid, "ray"


class Meter:
    """Processor time of this process and all under it, also of those that have ended since."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, float]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._look()

    def _look(self) -> None:
        for pid, kind in processes(os.getpid()):
            try:
                fields = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            # A process of Ray idles before it becomes an actor: its last name is what it was for.
            self._seen[pid] = kind, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read(self) -> dict[str, float]:
        """Seconds by what processes are. Ends the watch."""
        self._done.set()
        self._thread.join()
        self._look()
        found: dict[str, float] = {}
        for kind, seconds in self._seen.values():
            found[kind] = found.get(kind, 0.0) + seconds
        return found


def resident(root: int) -> Iterator[tuple[str, int]]:
    """Name and private memory in bytes of every process under `root`, itself included; and, as "object store", the
    pages that any one of them has touched of the memory they share."""
    shared = 0
    for pid, kind in processes(root):
        folder = Path("/proc") / str(pid)
        try:
            lines = (folder / "status").read_text().splitlines()
            maps = (folder / "smaps").read_text()
        except OSError:
            continue
        pages = dict(line.split(":", 1) for line in lines if ":" in line)
        if "RssAnon" not in pages:
            continue
        yield f"{kind}-{pid}", int(pages["RssAnon"].split()[0]) * 1024
        shared = max(shared, plasma_bytes(maps))
    yield "object store", shared


def plasma_bytes(maps: str) -> int:
    """Resident bytes of Ray's object store, a file named plasma on /dev/shm or elsewhere, in the text of an smaps."""
    inside, total = False, 0
    for line in maps.splitlines():
        head = line.split(":", 1)[0]
        if " " in head:  # an address range: a new mapping
            inside = "plasma" in line
        elif inside and head == "Rss":
            total += int(line.split()[1]) * 1024
    return total


def report_memory(*, minutes: float, every: float, actors: int, out: Path | None = None) -> Json:
    """Run on Ray for some minutes and sample the memory of every process; the slope of each after warm-up.

    out: a file that takes every sample as a line of JSON as soon as it is taken, so that a run cut short is not lost.
    Raises RuntimeError, with the last the run said, when it does not end well.
    """
    script = f"import json,sys;from benchmarks.scaling import endless_run;endless_run({actors}, {minutes})"
    samples: list[tuple[float, dict[str, int]]] = []
    with tempfile.TemporaryFile() as said:
        run = subprocess.Popen([sys.executable, "-c", script], stdout=said, stderr=subprocess.STDOUT)
        started = time.monotonic()
        while run.poll() is None:
            time.sleep(every)
            at, found = time.monotonic() - started, dict(resident(run.pid))
            if "driver" not in {name.split("-")[0] for name in found}:
                break
            samples.append((at, found))
            if out is not None:
                with out.open("a") as stream:
                    stream.write(json.dumps({"seconds": round(at, 1), "bytes": found}) + "\n")
        run.wait()
        said.seek(max(0, said.seek(0, os.SEEK_END) - LAST_SAID))
        last = said.read().decode(errors="replace").strip()
    if run.returncode:
        raise RuntimeError(
            f"the run whose memory was watched ended with exit status {run.returncode}, expected 0; "
            f"it said last:\n{last}"
        )
    return {"metrics": memory_slopes(samples), "minutes": samples[-1][0] / 60, "samples": len(samples)}


def memory_slopes(samples: list[tuple[float, dict[str, int]]], *, warm_up: float = 1 / 3) -> Json:
    """What each process held at the end and how fast it grew after the warm-up, the first part of the samples: rings
    fill and allocators settle then. samples: seconds, and bytes by process. Slopes are least squares, in MiB/h."""
    metrics: Json = {}
    late = [(at, found) for at, found in samples if at > samples[-1][0] * warm_up]
    for name in sorted({name for _, found in late for name in found}):
        points = [(at, found[name]) for at, found in late if name in found]
        if len(points) < 3:
            continue
        times, sizes = np.array(points).T
        slope = float(np.polyfit(times / 3600, sizes / 2**20, 1)[0])
        metrics[f"mib_{name}"] = {"value": sizes[-1] / 2**20, "unit": "MiB", "low": sizes.min() / 2**20,
                                  "high": sizes.max() / 2**20, "mib_per_hour": slope}  # fmt: skip
    return metrics


def endless_run(actors: int, minutes: float) -> None:
    """A distributed run that the clock ends, with the configuration of the other runs and checkpoints besides, but a
    replay that is full after 30,000 steps, which are the first minutes even of a busy machine."""
    from agent.config import AgentConfig
    from agent.distributed import Cluster, DistributedTrainer
    from agent.train import RunSettings
    from benchmarks.learning import CONFIG, SETTINGS, Verification, merged

    changes = {"training": {"env_steps": 10**9, "checkpoint_every": 1000}, "replay": {"capacity_steps": 30_000}}
    config = AgentConfig.model_validate(merged(CONFIG, changes))
    with tempfile.TemporaryDirectory() as directory:
        settings = RunSettings(directory=Path(directory), seed=0, code_version="benchmark", minutes=minutes)
        trainer = DistributedTrainer(config, Verification(SETTINGS[SETTING]), settings, Cluster(actors=actors))
        trainer.run()
        trainer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["costs", "runs", "memory"], default="costs")
    parser.add_argument("--env-steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--actors", type=int, nargs="+", default=[0, 1, 2], help="runs: 0 is one process")
    parser.add_argument("--envs", type=int, default=None, help="runs: environments of each actor")
    parser.add_argument("--minutes", type=float, default=60.0, help="memory: how long")
    parser.add_argument("--every", type=float, default=60.0, help="memory: seconds between samples")
    parser.add_argument("--out", type=Path, default=None, help="a file for every run or sample, as soon as it is there")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(one_run(Job(**json.loads(options.job)))))
        return
    if options.what == "costs":
        found = report_costs(quick=options.quick)
    elif options.what == "runs":
        seeds = options.seeds[:1] if options.quick else options.seeds
        steps = 6_000 if options.quick else options.env_steps
        found = report_runs(
            [Job(count, seed, steps, options.envs if count else None) for seed in seeds for count in options.actors],
            out=options.out,
        )
    else:
        found = report_memory(
            minutes=1.0 if options.quick else options.minutes,
            every=2.0 if options.quick else options.every,
            actors=max(options.actors[-1], 1),
            out=options.out,
        )
    output: Json = {
        "benchmark": "scaling",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in ("torch", "ray", "numba")},
        "ratios": {},
        **found,
    }
    if options.json:
        print(json.dumps(output, indent=2))
        return
    print(output["machine"])
    for name, metric in output["metrics"].items():
        spread = "" if metric["low"] is None else f" ({metric['low']:.4g} to {metric['high']:.4g})"
        slope = f", {metric['mib_per_hour']:+.2f} MiB/h" if "mib_per_hour" in metric else ""
        print(f"  {name:52} {metric['value']:12.5g}{spread} {metric['unit']}{slope}")


if __name__ == "__main__":
    main()
