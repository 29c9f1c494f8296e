"""The files of the dashboard, read once. Their addresses change with their content, so a browser asks for each once.

Plotly's script comes from the installed package: no other host is asked, and the version is the one that is pinned.
Two things make it work under `default-src 'self'` without any exception (found by trying, in Chromium):
- it writes style rules into the page unless an element `plotly.js-style-global` carries the class `no-inline-styles`:
  the page has one, and `plot.css` says what those rules would have said of the parts we use;
- its map library adds a style sheet unless an element with a certain id is there: `placeholders` finds the id.
"""

import functools
import gzip
import hashlib
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Final

STATIC: Final = Path(__file__).parent / "static"
PLOTLY: Final = "plotly.js"

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PLACEHOLDER: Final = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')
_SMALL: Final = 1024  # bytes; less gains nothing from compression


@dataclass(frozen=True, eq=False)
class Asset:
    """One file. version: of its content."""

    content: bytes = field(repr=False)
    media_type: str
    version: str

    @functools.cached_property
    def compressed(self) -> bytes | None:
        """With gzip; none where it does not pay. Plotly takes 0.3 s, so not on the event loop."""
        return gzip.compress(self.content, compresslevel=6, mtime=0) if len(self.content) > _SMALL else None


@functools.cache
def assets() -> dict[str, Asset]:
    """Everything under /static/, by name."""
    found = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in _MEDIA_TYPES}
    found[PLOTLY] = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return {
        name: Asset(content, _MEDIA_TYPES[Path(name).suffix], hashlib.sha256(content).hexdigest()[:16])
        for name, content in found.items()
    }


@functools.cache
def page(name: str) -> bytes:
    """A page of the dashboard, with the addresses of its files in place of `{{name}}`."""
    text = (STATIC / name).read_text()
    for asset_name, asset in assets().items():
        text = text.replace(f"{{{{{asset_name}}}}}", f"/static/{asset_name}?v={asset.version}")
    text = text.replace("{{placeholders}}", placeholders(assets()[PLOTLY].content))
    if "{{" in text:
        raise ValueError(f"{STATIC / name}: a name in double braces that is no file of the dashboard")
    return text.encode()


def placeholders(script: bytes) -> str:
    """Empty elements with the ids under which a script would otherwise add style sheets of its own."""
    identifiers = sorted({found.decode() for found in _PLACEHOLDER.findall(script)})
    return "".join(f'<template id="{identifier}"></template>' for identifier in identifiers)
