"""What the image and the compose file promise, read from the files: no container engine is needed."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = ("demo", "train", "monitoring", "postgres", "tls")
# What runs to its end and is done.
MOMENTARY = {"settings", "demo", "database-password", "train"}
GUIDE = (ROOT / "docs/operations.md").read_text()
SCRIPTS = sorted((ROOT / "deploy").rglob("*.sh"))


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continuation lines joined, comments dropped."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


STEPS = instructions(DOCKERFILE)
RUNTIME = STEPS[max(place for place, (name, _) in enumerate(STEPS) if name == "FROM") :]


# --- the image -------------------------------------------------------------------------------------------------------


def test_every_package_is_copied_into_the_build() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = {arguments.split()[0] for name, arguments in STEPS if name == "COPY"}
    assert {package.split(".")[0] for package in packages} <= copied


def test_everything_that_is_copied_exists_and_is_let_into_the_context() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, arguments in STEPS:
        if name != "COPY" or "--from=" in arguments:
            continue
        sources = [part for part in arguments.split()[:-1] if not part.startswith("--")]
        for source in sources:
            assert list(ROOT.glob(source)), source
            assert source in let_in or source.split("/")[0] in let_in, f"{source} is kept out by .dockerignore"


def test_the_context_is_a_list_of_what_is_wanted_and_not_of_what_is_not() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"


def test_the_base_is_an_argument_with_a_fixed_version() -> None:
    default = dict(arguments.split("=", 1) for name, arguments in STEPS if name == "ARG" and "=" in arguments)
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", default["BASE_IMAGE"])
    for name, arguments in STEPS:
        if name == "FROM":
            assert re.match(r"(\$\{BASE_IMAGE\}|base-\$\{TARGETARCH\}|scratch)( |$)", arguments), arguments


def test_the_image_runs_as_nobody_in_particular() -> None:
    [user] = [arguments for name, arguments in RUNTIME if name == "USER"]
    uid, gid = user.split(":")
    assert int(uid) >= 10_000  # a number, so that an orchestrator can see that it is not root
    assert int(gid) >= 10_000


def test_the_working_directory_is_no_place_to_import_from() -> None:
    assert any(name == "ENV" and "PYTHONSAFEPATH=1" in arguments for name, arguments in RUNTIME)


def test_the_image_says_what_it_is() -> None:
    labels = " ".join(arguments for name, arguments in RUNTIME if name == "LABEL")
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels


def test_no_secret_can_stay_in_a_layer() -> None:
    """A certificate comes in as a mount, and nothing that sounds like a secret as an argument or a variable."""
    for name, arguments in STEPS:
        if name in ("ARG", "ENV"):
            assert not re.search(r"(?i)password|secret|token|api_key", arguments), arguments
        if name == "ADD":
            pytest.fail("ADD fetches and unpacks by itself; COPY says what happens")
    assert "--mount=type=secret,id=ca,required=false" in DOCKERFILE


def test_nothing_of_the_build_but_what_runs_is_in_the_image() -> None:
    brought = [arguments.split()[-1] for name, arguments in RUNTIME if name == "COPY" and "--from=build" in arguments]
    assert brought == ["/opt/venv", "/opt/smu0"]
    assert not any(name == "RUN" and re.search(r"\bpip\b|\bapt", arguments) for name, arguments in RUNTIME)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_posix_shell_and_stop_at_the_first_error(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)


# --- the compose file ------------------------------------------------------------------------------------------------


def test_the_profiles_are_those_of_the_guide() -> None:
    assert {profile for service in SERVICES.values() for profile in service.get("profiles", ())} == set(PROFILES)
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"settings", "paper", "api"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert set(service.get("cap_add", [])) <= ({"NET_BIND_SERVICE"} if name == "tls" else set())
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert "privileged" not in service
    assert "network_mode" not in service
    if service["image"] == "smu0:local":
        assert int(service["user"].split(":")[0]) > 0


@pytest.mark.parametrize("name", sorted(set(SERVICES) - MOMENTARY))
def test_what_should_run_is_watched_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(MOMENTARY))
def test_what_runs_to_its_end_is_not_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"


def test_every_port_is_of_this_machine_alone_unless_somebody_says_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    for port in ports:
        assert port.startswith(("127.0.0.1:", "${SMU0_TLS_BIND:-127.0.0.1}:")), port


def test_no_variable_must_be_set_and_no_password_is_written_down() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"\$\{[A-Z0-9_]+\}|:\?", text), "a variable without a default"
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY", variable):
                assert str(value).startswith("/") or value == "${SMU0_API_KEY:-}", f"{name}: {variable}"


def test_images_of_others_have_versions() -> None:
    for name, service in SERVICES.items():
        image = re.sub(r"^\$\{[A-Z0-9_]+:-(.*)\}$", r"\1", service["image"])
        assert re.search(r":[\w.-]*\d[\w.-]*$", image) or image == "smu0:local", f"{name}: {image}"


def test_state_lives_in_whole_volumes_and_not_in_directories_of_the_host() -> None:
    """A SQLite ledger in WAL mode on a bind mount can be corrupted; configuration is mounted read-only."""
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, *rest = mount.split(":")
            assert source in COMPOSE["volumes"] or (source.startswith("./deploy/") and rest[-1] == "ro"), (
                f"{name}: {mount}"
            )
            if source.startswith("./"):
                assert (ROOT / source).exists(), mount


def test_api_and_paper_trade_with_the_same_model() -> None:
    [paper], [api] = (
        re.findall(r"--checkpoint\W+(\$\{[^}]+\})", str(SERVICES[name]["command"])) for name in ("paper", "api")
    )
    assert paper == api == "${SMU0_MODEL:-btc_1h}"


def test_a_training_run_leaves_the_decision_about_the_ledger_alone() -> None:
    """`docker compose run train` starts what it depends on, and `settings` decides by the profiles of that command."""
    assert "depends_on" not in SERVICES["train"]
    assert "SMU0_SETTINGS" not in SERVICES["train"]["environment"]


def test_processes_start_after_the_decision_and_anew_when_a_profile_comes_or_goes() -> None:
    for name in ("paper", "api"):
        needs = SERVICES[name]["depends_on"]
        assert needs["settings"] == {"condition": "service_completed_successfully"}
        assert all(not needs[other]["required"] for other in ("mock-exchange", "postgres"))


# --- the operator's guide --------------------------------------------------------------------------------------------


def test_the_guide_names_services_and_profiles_that_exist() -> None:
    used = re.findall(r"docker compose (?:exec|run(?: --\S+(?: \"[^\"]+\")?)*) ([a-z-]+)", GUIDE)
    assert {"paper", "api", "train"} <= set(used)
    assert set(used) <= set(SERVICES)
    assert set(re.findall(r"--profile ([a-z]+)", GUIDE)) == set(PROFILES) - {"train"}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m (service [a-z]+(?: [a-z]+)?)", GUIDE))))
def test_the_guide_names_commands_that_exist(command: str) -> None:
    words = [word for word in command.split() if word not in ("fills", "first", "reader")]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_guide_names_every_volume_and_every_variable() -> None:
    for volume in COMPOSE["volumes"]:
        assert f"`{volume}`" in GUIDE, volume
    variables = set(re.findall(r"\$\{([A-Z0-9_]+)", (ROOT / "docker-compose.yml").read_text()))
    told = GUIDE + (ROOT / "docker-compose.yml").read_text().split("name: smu0")[0]
    assert {name for name in variables if name not in told} == set()


# --- what the engine's client makes of it ----------------------------------------------------------------------------


def compose_client() -> bool:
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("profile", [None, *PROFILES, "*"])
def test_the_compose_file_is_valid_with_every_profile(profile: str | None) -> None:
    try:
        there = compose_client()
    except FileNotFoundError:
        there = False
    if not there:
        pytest.skip("no docker client with the compose plugin; DOCKER_CONFIG may name a directory that has it")
    chosen = [] if profile is None else ["--profile", profile]
    done = subprocess.run(
        ["docker", "compose", *chosen, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# --- what the services work on ---------------------------------------------------------------------------------------


class Deployment:
    """The state directory, and the script that decides what it is used for."""

    def __init__(self, state: Path) -> None:
        self.state = state
        (state / "password").write_text("5ec2e7")

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            ["sh", str(ROOT / "deploy/settings.sh"), *arguments], capture_output=True, text=True, check=True,
            env=os.environ | {
                "SMU0_SETTINGS": str(self.state / "settings"),
                "SMU0_DATABASE_PASSWORD_FILE": str(self.state / "password"),
            },
        )  # fmt: skip
        return done.stdout

    def up(self, *profiles: str) -> dict[str, str]:
        """What `docker compose up` with these profiles leaves the processes to read."""
        for profile in profiles:
            self.run("want", profile)
        self.run("decide")
        lines = (self.state / "settings").read_text().split()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


def test_without_a_profile_the_real_exchange_and_sqlite_are_meant(deployment: Deployment) -> None:
    assert deployment.up() == {"SMU0_STATE": f"{deployment.state}/live"}
    assert (deployment.state / "live").is_dir()


def test_the_demo_has_a_ledger_and_keys_of_its_own(deployment: Deployment) -> None:
    settings = deployment.up("demo")
    assert settings == {"SMU0_STATE": f"{deployment.state}/demo", "SMU0_EXCHANGE_URL": "http://mock-exchange:8091"}


def test_the_demo_lasts_as_long_as_its_profile_is_given(deployment: Deployment) -> None:
    deployment.up("demo")
    assert deployment.up() == {"SMU0_STATE": f"{deployment.state}/live"}


def test_postgres_takes_the_ledger_and_its_password_from_the_volume(deployment: Deployment) -> None:
    settings = deployment.up("postgres")
    assert settings["SMU0_DATABASE_URL"] == "postgresql+psycopg://smu0:5ec2e7@postgres/smu0"
    assert (deployment.state / "settings").stat().st_mode & 0o077 == 0


def test_the_demo_never_writes_to_the_database_of_the_real_market(deployment: Deployment) -> None:
    assert "SMU0_DATABASE_URL" not in deployment.up("postgres", "demo")


def test_what_is_decided_is_said_without_the_password(deployment: Deployment) -> None:
    deployment.run("want", "postgres")
    assert deployment.run("decide") == "smu0: paper trading at the real exchange, ledger in PostgreSQL\n"
