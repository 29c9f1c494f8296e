"""What deploy/ray says fits Ray, KubeRay, the image and the command line."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from agent.__main__ import app as agent_app
from data.__main__ import app as data_app

jsonschema = pytest.importorskip("jsonschema", reason="comes with Ray (extra: ray)")

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "ray"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCK = dict(line.split("==") for line in (ROOT / "requirements-ray.lock").read_text().split())


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return next(document for document in _documents("rayjob.yaml") if document["kind"] == "RayJob")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())
    return loaded


def _templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_cluster_is_what_ray_accepts() -> None:
    found = importlib.util.find_spec("ray")
    if found is None or not found.submodule_search_locations:
        pytest.skip("Ray is not installed (extra: ray)")
    rays_own = Path(found.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    [cluster] = _documents("cluster.yaml")
    jsonschema.validate(cluster, json.loads(rays_own.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 2}, json.loads(rays_own.read_text()))


def test_the_job_has_what_kuberay_requires(job: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(job, schema)
    for fault in ("entrypoint", "rayClusterSpec"):
        broken = {**job, "spec": {key: value for key, value in job["spec"].items() if key != fault}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job, "spec": {**job["spec"], "entryPoint": "x"}}, schema)


def test_every_process_runs_the_image_that_is_built_here(job: dict[str, Any]) -> None:
    images = {container["image"] for spec in _templates(job) for container in spec["containers"]}
    [cluster] = _documents("cluster.yaml")
    assert images == {cluster["docker"]["image"]} == {"smu0:ray"}
    assert "ARG WITH_RAY" in DOCKERFILE
    assert "requirements-ray.lock" in DOCKERFILE
    for file in ("cluster.yaml", "rayjob.yaml"):
        assert "--build-arg WITH_RAY=1" in (DEPLOY / file).read_text()


def test_rays_version_is_the_images(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
    tested = dict(
        line.split("==") for line in (ROOT / "requirements-dev.lock").read_text().split() if line.startswith("ray==")
    )
    assert tested["ray"] == LOCK["ray"], "what is deployed is what is tested"


def test_pods_run_as_the_images_user(job: dict[str, Any]) -> None:
    [user] = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M)
    for spec in _templates(job):
        assert (str(spec["securityContext"]["runAsUser"]), str(spec["securityContext"]["runAsGroup"])) == user


def test_every_mounted_volume_exists(job: dict[str, Any]) -> None:
    claims = {d["metadata"]["name"] for d in _documents("rayjob.yaml") if d["kind"] == "PersistentVolumeClaim"}
    for spec in _templates(job):
        names = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]} <= names
        for volume in spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_the_object_store_fits_into_shared_memory(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [shm] = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
        size = int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024**3
        assert int(group["rayStartParams"]["object-store-memory"]) < size


def _commands(job: dict[str, Any]) -> list[str]:
    text = (DEPLOY / "rayjob.yaml").read_text() + (DEPLOY / "cluster.yaml").read_text()
    entrypoint = job["spec"]["entrypoint"]
    return re.findall(r"python -m \w+ [^&]+", entrypoint) + re.findall(r"#.*?(python -m agent [^\n\"`]+)", text)


def test_the_commands_are_ones_that_the_program_takes(job: dict[str, Any]) -> None:
    commands = _commands(job)
    assert len(commands) == 5
    for command in commands:
        python, m, module, verb, *arguments = shlex.split(command)
        assert (python, m) == ("python", "-m")
        program = get_command({"agent": agent_app, "data": data_app}[module])
        program.commands[verb].make_context(verb, list(arguments))  # type: ignore[attr-defined]


def test_runs_are_written_where_the_claim_is_mounted(job: dict[str, Any]) -> None:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    [place] = [mount["mountPath"] for mount in head["volumeMounts"] if mount["name"] == "runs"]
    assert job["spec"]["entrypoint"].startswith(f"cd {place} && ")
    assert "/opt/smu0/configs" in job["spec"]["entrypoint"]
    assert "/opt/smu0/configs/" in DOCKERFILE


def test_there_is_room_for_the_actors_that_are_asked_for(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    [actors] = re.findall(r"--actors (\d+)", job["spec"]["entrypoint"])
    head = int(cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    workers = sum(
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in cluster["workerGroupSpecs"]
    )
    assert int(actors) + 2 <= head + workers, "learner, and replay and evaluator together, take one each"
