"""Small games learnt by self-play.

    python -m benchmarks.games 2048 --minutes 60                     a learning curve and a final score
    python -m benchmarks.games 2048 --minutes 15 --set network.codes=1   the same without chance codes
    python -m benchmarks.games --quick

Each run is one process with one thread. Seconds are of the processor beside those of the clock on the wall, because
runs are compared that share a machine.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.games.learning import SETTINGS, learn


def _overrides(assignments: list[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        section, _, name = key.partition(".")
        if name:
            changes.setdefault(section, {})[name] = yaml.safe_load(value)
        else:
            changes[section] = yaml.safe_load(value)
    return changes


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.games", description=__doc__.split("\n")[0])
    parser.add_argument("game", nargs="?", choices=sorted(SETTINGS), default="2048")
    parser.add_argument("--minutes", type=float, help="of training; default: until its steps are done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="override of the agent's configuration, KEY=VALUE")
    parser.add_argument("--out", type=Path, help="keep the result in this file")
    parser.add_argument("--run", type=Path, help="keep metrics and checkpoints in this directory")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    minutes = 0.1 if given.quick else given.minutes
    result = learn(given.game, _overrides(given.set), seed=given.seed, minutes=minutes, directory=given.run)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result))
    if given.json:
        print(json.dumps(result))
        return
    print(f"{given.game}: {result['score']:.3f} ± {result['standard_error']:.3f} with search, ", end="")
    print(
        f"{result['prior_score']:.3f} by the prior; {result['env_steps']:,} steps, {result['updates']:,} updates, ",
        end="",
    )
    print(f"{result['cpu_seconds']:.0f} s of the processor, {result['seconds']:.0f} s; codes {result['codes']:.1f}")
    for who, lines in result.get("games", {}).items():
        print(f"as the {who}: " + ", ".join(f"{count} lines {what}" for what, count in lines.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
