"""API keys: who may ask, and for what.

A key is 256 random bits. Only its SHA-256 is stored: a slow password hash would protect nothing here, because nobody
can try 2^256 keys, and would cost every request milliseconds.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.errors import Forbidden, TooManyRequests, Unauthorized
from service.limits import TokenBuckets

KEY_PREFIX = "smu0_"  # lets secret scanners and people recognise one
MINIMUM_SECRET_LENGTH = 16  # of a key given from outside
_NAME = "[A-Za-z0-9._-]{1,64}"

log = logging.getLogger("service.auth")


class Scope(StrEnum):
    """What a key allows. Scopes do not include one another."""

    READ = "read"  # models and the ledger
    ACT = "act"  # decisions
    CONTROL = "control"  # change what is served, and what the paper trader may do


ALL_SCOPES = frozenset(Scope)


class KeyFileError(RuntimeError):
    """The key file cannot be used as it is."""


class ApiKey(BaseModel):
    """A key as it is stored: everything but the key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{_NAME}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key")
    scopes: frozenset[Scope] = Field(min_length=1)
    created: datetime


_KeyList = TypeAdapter(list[ApiKey])


class KeyFile:
    """The keys on disk: a JSON list, readable by its owner only, replaced atomically.

    A running service notices a change, so that adding and revoking need no restart.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: list[ApiKey] = []

    def current(self) -> list[ApiKey]:
        """The keys as they are now; none when there is no file. Raises KeyFileError."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, []
            return []
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._keys = self._read()
            self._seen = seen
        return self._keys

    def add(self, name: str, scopes: Iterable[Scope]) -> str:
        """Make a key and store its hash. Returns the key itself: the only time anybody sees it.

        Raises KeyFileError when the name is taken or unfit.
        """
        if not re.fullmatch(_NAME, name):
            raise KeyFileError(f"key name {name!r}: expected 1 to 64 letters, digits, dots, hyphens or underscores")
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        entry = ApiKey(name=name, digest=digest(key), scopes=frozenset(scopes), created=datetime.now(UTC))
        with self._lock():
            keys = self._existing()
            if any(known.name == name for known in keys):
                raise KeyFileError(f'a key named {name} exists. Choose another name, or "keys revoke {name}" first')
            self._write([*keys, entry])
        return key

    def revoke(self, name: str) -> None:
        """Forget a key. Raises KeyFileError with the names there are."""
        with self._lock():
            keys = self._existing()
            kept = [key for key in keys if key.name != name]
            if len(kept) == len(keys):
                known = ", ".join(sorted(key.name for key in keys)) or "none"
                raise KeyFileError(f"no key named {name} in {self.path}. Keys: {known}")
            self._write(kept)

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileLock(f"{self.path}.lock", timeout=10)

    def _existing(self) -> list[ApiKey]:
        return self._read() if self.path.exists() else []

    def _read(self) -> list[ApiKey]:
        try:
            return _KeyList.validate_json(self.path.read_bytes())
        except (ValidationError, UnicodeDecodeError):
            # No detail and no cause: whatever stands in the file may be a secret.
            raise KeyFileError(
                f"{self.path}: expected the key list this service writes, found something else. Restore it, or "
                f"remove it and make new keys"
            ) from None

    def _write(self, keys: list[ApiKey]) -> None:
        rows = [{**key.model_dump(mode="json"), "scopes": sorted(key.scopes)} for key in keys]
        temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(rows, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.path)


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Authenticator:
    """Decides whether a request may pass. Knows clients by address; both rates are per client."""

    def __init__(
        self, key_file: KeyFile, *, requests: TokenBuckets, failures: TokenBuckets, extra: Iterable[ApiKey] = ()
    ) -> None:
        """extra: keys that are not in the file, such as one from the environment."""
        self._key_file = key_file
        self._extra = list(extra)
        self._requests = requests
        self._failures = failures
        self._broken: str | None = None

    def keys(self) -> list[ApiKey]:
        """Every key that is valid now. A damaged key file lets nobody in but the keys from elsewhere."""
        try:
            keys = self._key_file.current()
        except (KeyFileError, OSError) as error:
            if str(error) != self._broken:
                log.error("keys: %s", error)
                self._broken = str(error)
            keys = []
        return [*self._extra, *keys]

    def charge(self, client: str, requests: int = 1) -> None:
        """Count requests of a client. Raises TooManyRequests."""
        wait = self._requests.take(client, requests)
        if wait:
            raise TooManyRequests(
                f"more than {self._requests.rate:g} requests per second from {client}; slow down", retry_after=wait
            )

    def authenticate(self, client: str, presented: str | None) -> ApiKey:
        """The key a client presented. Raises Unauthorized, or TooManyRequests after too many wrong ones."""
        if presented is None:
            raise Unauthorized(
                'expected an API key in the header "X-API-Key: KEY" or "Authorization: Bearer KEY", or a browser '
                "logged in at /login, found neither"
            )
        # Refused before the key is looked at, so that guessing goes no faster when one guess is right.
        wait = self._failures.wait(client)
        if wait:
            raise TooManyRequests(f"too many wrong keys from {client}; wait before the next try", retry_after=wait)
        found = match(presented, self.keys())
        if found is None:
            self._failures.take(client)
            raise Unauthorized(
                'this API key is not known. "python -m service keys list" shows the names of those that are, '
                '"python -m service keys add NAME" makes one'
            )
        return found


def match(presented: str, keys: Iterable[ApiKey]) -> ApiKey | None:
    """The key whose hash fits. Every one is compared, in constant time, so time tells nothing."""
    wanted = digest(presented)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, wanted):
            found = key
    return found


def require(key: ApiKey, scope: Scope) -> None:
    """Raises Forbidden unless the key allows this."""
    if scope not in key.scopes:
        raise Forbidden(f"expected a key with scope {scope}, found {key.name} with {', '.join(sorted(key.scopes))}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than localhost may resolve to anything: no."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
