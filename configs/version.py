"""Which code this is."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def code_version() -> str:
    """The installed distribution's version, or the one a source tree stands for when nothing is installed."""
    try:
        return version("smu0")
    except PackageNotFoundError:
        return "0+source"
