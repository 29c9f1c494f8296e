"""python -m service: serve, paper, example, keys, ledger.

Here the process is put together: settings, a checkpoint, keys, a socket. Heavy imports wait for the command that
needs them, so that --help answers at once.
"""

import gc
import json
import logging
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from data.commandline import JsonOption, make_app, print_json, run
from service.auth import ALL_SCOPES, ApiKey, Authenticator, KeyFile, Scope, digest, is_loopback
from service.config import ServiceConfig
from service.ledger.commands import app as ledger_app
from service.limits import TokenBuckets
from service.paper.commands import paper
from service.settings import Settings, read_settings

KEY_FILE = "keys.json"
SESSION_FILE = "sessions.json"
FIRST_KEY = "first"
_COLLECT_AFTER = 20_000  # objects made and not freed; Python's own 700 means a collection every other request

app = make_app("Serve trading decisions of a checkpoint over REST.")
keys_app = make_app("API keys: only their hashes are stored, so a key is shown once, when it is made.")
app.add_typer(keys_app, name="keys")
app.add_typer(ledger_app, name="ledger")
app.command()(paper)

CheckpointOption = Annotated[
    str | None,
    typer.Option(help="checkpoint directory, run directory or run name; default: the newest run, else a bundled model"),
]


@app.command()
def serve(
    checkpoint: CheckpointOption = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    timeout_graceful_shutdown: Annotated[
        int, typer.Option(min=0, help="seconds that open requests get after SIGTERM")
    ] = 5,
    requests_per_second: Annotated[
        float, typer.Option(min=1.0, help="sustained requests per client address; more gets 429")
    ] = ServiceConfig().requests_per_second,
) -> None:
    """Answer POST /v1/act until stopped.

    Example: python -m service serve --checkpoint var/runs/demo/checkpoints/best --port 8000
    """
    settings = read_settings()
    key_file = KeyFile(settings.state / KEY_FILE)
    extra = _environment_keys(settings)
    has_keys = bool(extra or key_file.current())
    if not has_keys and not is_loopback(host):
        raise ValueError(
            f"--host {host}: expected an API key before the service listens beyond this machine, found none. Make one "
            f'with "python -m service keys add NAME", or set SMU0_API_KEY'
        )

    import torch
    import uvicorn

    from configs.checkpoints import find_checkpoint
    from service.app import create_app
    from service.ledger_desk import LedgerDesk
    from service.model import Serving, load_model
    from service.runtime import Service
    from service.server import Server
    from service.sessions import Sessions

    source = find_checkpoint(checkpoint, runs=settings.runs, models=settings.models)
    listener = _listen(host, port)
    # One decision is too small for several threads, and the second core has the requests to read.
    torch.set_num_threads(1)
    model = load_model(source)
    new_key = None if has_keys else key_file.add(FIRST_KEY, ALL_SCOPES)
    config = ServiceConfig(requests_per_second=requests_per_second)
    service = Service(
        Serving(model),
        Authenticator(
            key_file,
            requests=TokenBuckets(rate=config.requests_per_second, burst=config.request_burst),
            failures=TokenBuckets(rate=config.failed_logins_per_second, burst=config.failed_login_burst),
            extra=extra,
        ),
        config=config,
        checkpoint_roots=(settings.runs, settings.models),
        sessions=Sessions(
            settings.state / SESSION_FILE,
            limit=config.session_limit,
            lifetime_seconds=config.session_seconds,
            idle_seconds=config.session_idle_seconds,
        ),
        ledger=LedgerDesk.from_config(settings.ledger_url, config),
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    server = Server(
        uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a client could write its own address there and dodge the rate limit
            timeout_graceful_shutdown=timeout_graceful_shutdown,
        ),
        on_stop=service.stop,
    )
    # Nothing made so far is ever thrown away, so the garbage collector need not look at it again and again; and a
    # request makes few cycles, so it need not look often (docs/decisions/0057).
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    _announce(model.label, _url(host, listener.getsockname()[1]), new_key, checkpoint)
    server.run(sockets=[listener])


@app.command()
def example(
    checkpoint: CheckpointOption = None,
    symbol: Annotated[str | None, typer.Option(help="one of the experiment's symbols; default: the first")] = None,
    position: Annotated[float, typer.Option(min=-1.0, max=1.0, help="exposure held now")] = 0.0,
    simulations: Annotated[int | None, typer.Option(min=0, max=512, help="search budget")] = None,
) -> None:
    """Print a request body for POST /v1/act, made from the newest stored bars of the checkpoint's market.

    Example: python -m service example | curl -s -H "X-API-Key: $SMU0_API_KEY" -H "content-type: application/json"
    -d @- http://127.0.0.1:8000/v1/act
    """
    from agent.checkpoint import read_metadata
    from configs.checkpoints import find_checkpoint
    from configs.experiment import parse_experiment
    from service.example import example_request

    settings = read_settings()
    source = find_checkpoint(checkpoint, runs=settings.runs, models=settings.models)
    experiment = parse_experiment(read_metadata(source).experiment, str(source))
    series = experiment.load_bars()
    wanted = series[0].symbol if symbol is None else symbol
    chosen = [bars for bars in series if bars.symbol == wanted]
    if not chosen:
        raise ValueError(f"--symbol {wanted}: expected one of {', '.join(bars.symbol for bars in series)}")
    request = example_request(
        experiment, chosen[0], now_ms=int(time.time() * 1000), position=position, simulations=simulations
    )
    print(json.dumps(request, allow_nan=False))


@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="who will use it")],
    scope: Annotated[list[Scope] | None, typer.Option(help="what it allows; repeatable; default: all")] = None,
    if_none: Annotated[bool, typer.Option("--if-none", help="do nothing where there is a key already")] = False,
    json_output: JsonOption = False,
) -> None:
    """Make a key and show it, once. A running service accepts it at once.

    Example: python -m service keys add bot --scope act
    """
    scopes = frozenset(scope) if scope else ALL_SCOPES
    if if_none and (_environment_keys(read_settings()) or _key_file().current()):
        return
    key = _key_file().add(name, scopes)
    if json_output:
        print_json({"name": name, "scopes": sorted(scopes), "key": key})
    else:
        print(f"{key}\n{name} may {', '.join(sorted(scopes))}. This key is not shown again.")


@keys_app.command("list")
def list_keys(json_output: JsonOption = False) -> None:
    """Show names, scopes and dates of the keys in the key file.

    Example: python -m service keys list
    """
    rows = [
        {"name": key.name, "scopes": sorted(key.scopes), "created": key.created.isoformat(timespec="seconds")}
        for key in _key_file().current()
    ]
    if json_output:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['name']:24} {','.join(row['scopes']):18} {row['created']}")
    if not rows:
        print("no keys; the first start of the service makes one")


@keys_app.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="as keys list shows it")]) -> None:
    """Forget a key. A running service refuses it from then on.

    Example: python -m service keys revoke bot
    """
    _key_file().revoke(name)
    print(f"{name} is revoked")


def _key_file() -> KeyFile:
    return KeyFile(read_settings().state / KEY_FILE)


def _environment_keys(settings: Settings) -> list[ApiKey]:
    if settings.api_key is None:
        return []
    from datetime import UTC, datetime

    secret = settings.api_key.get_secret_value()
    return [ApiKey(name="environment", digest=digest(secret), scopes=ALL_SCOPES, created=datetime.now(UTC))]


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is an error before a key is made and shown."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}. Try another --port") from None
    return listener


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _announce(label: str, url: str, new_key: str | None, checkpoint: str | None) -> None:
    """What a person needs to make the first request. Printed, never logged: it may hold a new key."""
    python = Path(sys.executable)
    shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    named = "" if checkpoint is None else f" --checkpoint {shlex.quote(checkpoint)}"
    print(f"serving {label} on {url}")
    if new_key is None:
        print("keys: as made before; KEY below stands for one of them (python -m service keys add NAME makes another)")
    else:
        print(f"API key, shown this once: {new_key}")
    print(
        f"ask:\n  {shlex.quote(str(shown))} -m service example{named} | curl -s -H 'X-API-Key: {new_key or 'KEY'}' "
        f"-H 'content-type: application/json' -d @- {url}/v1/act",
        flush=True,
    )


if __name__ == "__main__":
    run(app, "python -m service")
