"""Rotation of the development server's signing keys, judged by the official SDK's receiver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from counting_destination import CountingDestination, counting_destination
from destinations import Arrival
from processes import Spawner
from qstash import QStash, Receiver
from qstash.errors import SignatureError

from queuebridge.backends.qstash.devserver import ServerSettings, running_server, sqlite_store
from queuebridge.backends.qstash.protocol import DEV_USERS

USER, OTHER_USER = DEV_USERS[:2]
OLD_PAIR = Receiver(current_signing_key=USER.current_signing_key, next_signing_key=USER.next_signing_key)


@pytest.fixture
def destination() -> Iterator[CountingDestination]:
    """A destination for deliveries."""
    with counting_destination() as found:
        yield found


def verify(receiver: Receiver, request: Arrival) -> None:
    receiver.verify(signature=request.headers["upstash-signature"], body=request.body.decode())


def test_old_pair_verifies_after_one_rotation_and_not_after_two(
    sdk: Callable[..., QStash], destination: CountingDestination
) -> None:
    with running_server(ServerSettings(port=0)) as url:
        client = sdk(url)
        client.message.publish(url=destination.url("/0"), body="b")
        destination.wait_for(1)
        first = client.signing_key.rotate()
        client.message.publish(url=destination.url("/1"), body="b")
        destination.wait_for(2)
        second = client.signing_key.rotate()
        client.message.publish(url=destination.url("/2"), body="b")
        before, once, twice = destination.wait_for(3)

        assert first.current == USER.next_signing_key
        assert first.next not in {USER.current_signing_key, USER.next_signing_key}
        assert second.current == first.next
        assert client.signing_key.get() == second
        other = sdk(url, OTHER_USER.token).signing_key.get()
        assert (other.current, other.next) == (OTHER_USER.current_signing_key, OTHER_USER.next_signing_key)

    verify(OLD_PAIR, before)
    verify(OLD_PAIR, once)
    verify(Receiver(current_signing_key=first.current, next_signing_key="sig_x"), once)
    verify(Receiver(current_signing_key=first.current, next_signing_key=first.next), twice)
    with pytest.raises(SignatureError):
        verify(OLD_PAIR, twice)


def test_rotated_keys_survive_a_restart(
    sdk: Callable[..., QStash], destination: CountingDestination, tmp_path: Path
) -> None:
    settings = ServerSettings(port=0, db_path=tmp_path / "db")
    with running_server(settings) as url:
        sdk(url).signing_key.rotate()
        pair = sdk(url).signing_key.rotate()

    with running_server(settings) as url:
        assert sdk(url).signing_key.get() == pair
        sdk(url).message.publish(url=destination.url("/x"), body="b")
        (arrival,) = destination.wait_for(1)

    verify(Receiver(current_signing_key=pair.current, next_signing_key="sig_x"), arrival)


def test_printed_environment_has_the_rotated_keys(sdk: Callable[..., QStash], tmp_path: Path, spawn: Spawner) -> None:
    with running_server(ServerSettings(port=0, db_path=tmp_path / "db")) as url:
        pair = sdk(url).signing_key.rotate()
    arguments = ["devserver", "--port", "0", "--db", str(tmp_path / "db"), "--print-env"]

    process = spawn([sys.executable, "-m", "queuebridge", *arguments], name="devserver")

    process.wait_for_line(f"^export QSTASH_CURRENT_SIGNING_KEY='{pair.current}'$")
    process.wait_for_line(f"^export QSTASH_NEXT_SIGNING_KEY='{pair.next}'$")


def test_rotation_that_cannot_be_stored_changes_nothing(
    sdk: Callable[..., QStash], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError("disk full")

    settings = ServerSettings(port=0, db_path=tmp_path / "db")
    with running_server(settings) as url:
        pair = sdk(url).signing_key.get()
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_store.SqliteStore, "_write", fail)
            answer = httpx.post(
                f"{url}/v2/keys/rotate", headers={"Authorization": f"Bearer {USER.token}"}, trust_env=False
            )
            assert answer.status_code == 500
        assert sdk(url).signing_key.get() == pair

    with running_server(settings) as url:
        assert sdk(url).signing_key.get() == pair


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/keys/rotate", 404),
        ("POST", "/v2/keys", 404),
        ("POST", "/v2/keys/rotate/x", 404),
        ("POST", "/v2/keys/rotate?user=x", 400),
        ("GET", "/v2/keys?x=1", 400),
    ],
)
def test_what_cannot_be_done_with_keys_is_a_json_error(
    free_server: str, method: str, path: str, status: int
) -> None:
    headers = {"Authorization": f"Bearer {USER.token}"}

    answer = httpx.request(method, free_server + path, headers=headers, trust_env=False)

    assert (answer.status_code, list(answer.json())) == (status, ["error"])


@pytest.fixture(scope="module")
def free_server() -> Iterator[str]:
    """A server whose keys no test rotates."""
    with running_server(ServerSettings(port=0)) as url:
        yield url
