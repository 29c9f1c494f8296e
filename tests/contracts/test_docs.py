"""What the documents promise exists: commands, files, packages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
COMMAND = re.compile(r"python -m (data|agent|backtest|service) ([a-z][a-z-]*)")


def _commands() -> list[tuple[str, str]]:
    texts = [(ROOT / page).read_text() for page in PAGES] + [
        path.read_text() for path in (ROOT / "configs").glob("*.yaml")
    ]
    return sorted({match.groups() for text in texts for match in COMMAND.finditer(text)})  # type: ignore[misc]


@pytest.mark.parametrize(("program", "command"), _commands())
def test_every_documented_command_has_help_with_an_example(program: str, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m {program} {command}" in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_every_linked_file_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (ROOT / target).exists(), f"{page} links to {target}"


def test_decisions_have_one_number_each() -> None:
    numbers = [path.name[:4] for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert len(numbers) == len(set(numbers))


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`?make ([a-z][a-z-]+)", (ROOT / page).read_text()):
            assert target in targets, f"{page}: make {target}"
