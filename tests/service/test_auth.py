"""API keys: made once, stored as hashes, compared whole, refused after too many wrong ones."""

import json
import logging
import stat
from pathlib import Path

import pytest

from service import auth
from service.auth import ALL_SCOPES, Authenticator, KeyFile, KeyFileError, Scope, digest, is_loopback, match, require
from service.errors import Forbidden, TooManyRequests, Unauthorized
from service.limits import TokenBuckets


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "state" / "keys.json")


def authenticator(key_file: KeyFile, *, failures: int = 5, requests: int = 100) -> Authenticator:
    return Authenticator(
        key_file,
        requests=TokenBuckets(rate=1.0, burst=requests, clock=lambda: 0.0),
        failures=TokenBuckets(rate=1.0, burst=failures, clock=lambda: 0.0),
    )


def test_a_key_opens_what_it_was_made_for(key_file: KeyFile) -> None:
    key = key_file.add("bot", [Scope.ACT])
    found = authenticator(key_file).authenticate("client", key)
    assert found.name == "bot"
    require(found, Scope.ACT)
    with pytest.raises(Forbidden, match="scope control, found bot with act"):
        require(found, Scope.CONTROL)


def test_the_file_holds_hashes_and_only_its_owner_reads_it(key_file: KeyFile) -> None:
    key = key_file.add("bot", ALL_SCOPES)
    text = key_file.path.read_text()
    assert key not in text
    assert json.loads(text)[0]["digest"] == digest(key)
    assert stat.S_IMODE(key_file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file.path.parent.stat().st_mode) == 0o700


def test_two_keys_never_coincide_and_are_long(key_file: KeyFile) -> None:
    keys = {key_file.add(f"bot-{number}", [Scope.READ]) for number in range(5)}
    assert len(keys) == 5
    assert min(len(key) for key in keys) >= 43  # 256 bits in base64


def test_a_name_is_given_once(key_file: KeyFile) -> None:
    key_file.add("bot", [Scope.ACT])
    with pytest.raises(KeyFileError, match="named bot exists"):
        key_file.add("bot", [Scope.READ])


def test_adding_and_revoking_need_no_restart(key_file: KeyFile) -> None:
    running = authenticator(key_file)
    with pytest.raises(Unauthorized):
        running.authenticate("client", "anything")
    key = key_file.add("bot", [Scope.ACT])
    assert running.authenticate("client", key).name == "bot"
    KeyFile(key_file.path).revoke("bot")  # by another process
    with pytest.raises(Unauthorized):
        running.authenticate("client", key)


def test_revoking_a_name_that_is_not_there_says_which_are(key_file: KeyFile) -> None:
    key_file.add("bot", [Scope.ACT])
    with pytest.raises(KeyFileError, match="Keys: bot"):
        key_file.revoke("robot")


def test_a_damaged_key_file_lets_nobody_in_and_shows_nothing_of_itself(
    key_file: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    key = key_file.add("bot", [Scope.ACT])
    running = authenticator(key_file)
    key_file.path.write_text('{"secret": "smu0_secret_in_a_broken_file"')
    with caplog.at_level(logging.DEBUG), pytest.raises(Unauthorized):
        running.authenticate("client", key)
    assert "expected the key list" in caplog.text
    assert "smu0_secret" not in caplog.text


def test_a_missing_key_and_a_wrong_key_are_401_with_what_to_do(key_file: KeyFile) -> None:
    running = authenticator(key_file)
    with pytest.raises(Unauthorized, match='header "X-API-Key: KEY"'):
        running.authenticate("client", None)
    with pytest.raises(Unauthorized, match="keys add NAME") as caught:
        running.authenticate("client", "smu0_wrong")
    assert "smu0_wrong" not in str(caught.value)


def test_after_too_many_wrong_keys_even_the_right_one_has_to_wait(key_file: KeyFile) -> None:
    key = key_file.add("bot", [Scope.ACT])
    running = authenticator(key_file, failures=3)
    for _ in range(3):
        with pytest.raises(Unauthorized):
            running.authenticate("guesser", "smu0_wrong")
    for presented in ("smu0_wrong", key):
        with pytest.raises(TooManyRequests) as caught:
            running.authenticate("guesser", presented)
        assert caught.value.headers == {"Retry-After": "1"}
    assert running.authenticate("somebody else", key).name == "bot"


def test_a_missing_key_is_no_guess(key_file: KeyFile) -> None:
    running = authenticator(key_file, failures=1)
    for _ in range(10):
        with pytest.raises(Unauthorized):
            running.authenticate("client", None)


def test_requests_are_counted_per_client(key_file: KeyFile) -> None:
    running = authenticator(key_file, requests=2)
    running.charge("a", 2)
    with pytest.raises(TooManyRequests):
        running.charge("a")
    running.charge("b")


def test_every_key_is_compared_in_constant_time(key_file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_file.add(name, [Scope.ACT]) for name in ("a", "b", "c")]
    compared = []

    def spy(left: str, right: str) -> bool:
        compared.append(left)
        return left == right

    monkeypatch.setattr(auth.hmac, "compare_digest", spy)
    for key in [*keys, "smu0_wrong"]:
        compared.clear()
        match(key, key_file.current())
        assert len(compared) == 3  # no early exit at the first that fits


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
