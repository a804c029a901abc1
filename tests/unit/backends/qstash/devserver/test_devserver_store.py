from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from queuebridge.backends.qstash.devserver.messages import Document, FlowControl, MessageSpec, Recovered, Redaction
from queuebridge.backends.qstash.devserver.records import encode_queue
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore
from queuebridge.backends.qstash.devserver.store import StoreError
from queuebridge.errors import ConfigurationError

T = TypeVar("T")
MakeWorld = Callable[..., Any]

FULL_SPEC: dict[str, Any] = {
    "method": "PUT",
    "headers": (("X-A", "1"), ("X-B", "\udcff")),
    "max_retries": 5,
    "retry_delay": "1000",
    "timeout_seconds": 9,
    "callback": MessageSpec(url="http://cb/", headers=(("X-C", "2"),), max_retries=1),
    "flow": FlowControl(key="k", parallelism=2, period_seconds=3),
    "labels": ("a", "b"),
    "redaction": Redaction(body=True, headers=frozenset({"x-a"})),
    "queue": "q",
    "caller_ip": "10.0.0.1",
}


def in_store(path: Path, action: Callable[[SqliteStore, Recovered], Awaitable[T]]) -> T:
    """Open the store, run an action on it, and close it again."""

    async def main() -> T:
        store = SqliteStore(path)
        recovered = await store.load()
        try:
            return await action(store, recovered)
        finally:
            await store.close()

    return asyncio.run(main())


async def _nothing(_store: SqliteStore, recovered: Recovered) -> Recovered:
    return recovered


def contents(path: Path) -> Recovered:
    return in_store(path, _nothing)


def test_committed_message_is_found_again_with_all_it_carried(tmp_path: Path, make_world: MakeWorld) -> None:
    async def publish(store: SqliteStore, _recovered: Recovered) -> Any:
        world = make_world(store)
        message = world.publish("http://host/ü", delay=60, **FULL_SPEC)
        await store.commit()
        return message

    message = in_store(tmp_path / "db", publish)

    (found,) = contents(tmp_path / "db").messages
    for name in ("seq", "id", "account", "spec", "body", "created_ms", "not_before_ms", "retried", "hold"):
        assert getattr(found, name) == getattr(message, name)


def test_retries_and_time_due_are_found_again(tmp_path: Path, make_world: MakeWorld) -> None:
    async def fail_once(store: SqliteStore, _recovered: Recovered) -> Any:
        world = make_world(store)
        message = world.publish(retry_delay="5000")
        world.start()
        world.finish(message, 500)
        await store.commit()
        return message

    message = in_store(tmp_path / "db", fail_once)

    (found,) = contents(tmp_path / "db").messages
    assert (found.retried, found.due) == (1, message.due)


def test_finished_and_discarded_messages_are_gone(tmp_path: Path, make_world: MakeWorld) -> None:
    async def finish(store: SqliteStore, _recovered: Recovered) -> None:
        world = make_world(store)
        delivered = world.publish()
        world.start()
        await store.commit()
        world.finish(delivered)
        spec = MessageSpec(url="http://h/")
        _, discarded = world.engine.accept(world.account, spec, b"", not_before=0, dedup_key="id:a")
        world.engine.discard(discarded)
        await store.commit()

    in_store(tmp_path / "db", finish)

    assert contents(tmp_path / "db") == Recovered()


def test_dead_letter_deduplication_and_queue_are_found_again(tmp_path: Path, make_world: MakeWorld) -> None:
    async def fail(store: SqliteStore, _recovered: Recovered) -> Any:
        world = make_world(store)
        message = world.publish(max_retries=0, queue="q", dedup_key="id:a")
        world.start()
        world.finish(message, 503, headers=(("X-Why", "z"),), body=b"\xff")
        return world

    world = in_store(tmp_path / "db", fail)

    found = contents(tmp_path / "db")
    (letter,), (expected,) = found.dead_letters, world.account.dead_letters.values()
    assert (letter.dlq_id, letter.outcome, letter.entered_ms) == (
        expected.dlq_id,
        expected.outcome,
        expected.entered_ms,
    )
    assert (letter.message.id, letter.message.body) == (expected.message.id, b"body")
    assert found.deduplication == list(world.account.deduplication.values())
    assert found.documents == [encode_queue(world.account.queues["q"].record)]


def test_message_in_flight_at_the_crash_is_due_again_under_its_id(tmp_path: Path, make_world: MakeWorld) -> None:
    async def crash(store: SqliteStore, _recovered: Recovered) -> list[str]:
        world = make_world(store)
        messages = [world.publish(), world.publish(), world.publish(delay=60)]
        world.start()
        return [message.id for message in messages]

    first, second, later = in_store(tmp_path / "db", crash)

    world = make_world()
    recover(world.engine, contents(tmp_path / "db"))
    assert [message.id for message in world.start()] == [first, second]
    assert [message.id for message in world.advance(60)] == [later]


def test_queue_keeps_its_order_and_its_head_over_a_restart(tmp_path: Path, make_world: MakeWorld) -> None:
    async def crash(store: SqliteStore, _recovered: Recovered) -> list[str]:
        world = make_world(store)
        messages = [world.publish(queue="q", retry_delay="5000") for _ in range(3)]
        world.start()
        world.finish(messages[0], 500)
        return [message.id for message in messages]

    first, second, _ = in_store(tmp_path / "db", crash)

    world = make_world()
    recover(world.engine, contents(tmp_path / "db"))
    assert world.start() == []
    (again,) = world.advance(5)
    assert (again.id, again.retried) == (first, 1)
    world.finish(again)
    assert [message.id for message in world.start()] == [second]


def test_callback_under_way_keeps_its_queue_waiting_over_a_restart(tmp_path: Path, make_world: MakeWorld) -> None:
    async def crash(store: SqliteStore, _recovered: Recovered) -> str:
        world = make_world(store)
        source = world.publish(queue="q", callback=MessageSpec(url="http://cb/"))
        behind = world.publish(queue="q")
        world.start()
        world.finish(source)
        return str(behind.id)

    behind = in_store(tmp_path / "db", crash)

    world = make_world()
    recover(world.engine, contents(tmp_path / "db"))
    (callback,) = world.start()
    assert callback.spec.url == "http://cb/"
    world.finish(callback)
    assert [message.id for message in world.start()] == [behind]


def test_requested_cancellation_survives_a_restart(tmp_path: Path, make_world: MakeWorld) -> None:
    async def crash(store: SqliteStore, _recovered: Recovered) -> None:
        world = make_world(store)
        message = world.publish()
        world.start()
        world.engine.cancel(world.account, message)

    in_store(tmp_path / "db", crash)

    world = make_world()
    recover(world.engine, contents(tmp_path / "db"))
    assert world.start() == []


def test_new_messages_after_a_restart_do_not_overwrite_old_ones(tmp_path: Path, make_world: MakeWorld) -> None:
    async def publish(store: SqliteStore, recovered: Recovered) -> None:
        world = make_world(store)
        recover(world.engine, recovered)
        world.publish(delay=60)

    for _ in range(3):
        in_store(tmp_path / "db", publish)

    assert len({message.id for message in contents(tmp_path / "db").messages}) == 3


def test_commits_of_one_moment_share_one_transaction(tmp_path: Path, make_world: MakeWorld) -> None:
    async def publish_many(store: SqliteStore, _recovered: Recovered) -> int:
        world = make_world(store)
        write = store._write
        written: list[object] = []

        def count(batch: Any) -> None:
            written.append(batch)
            write(batch)

        store._write = count  # type: ignore[method-assign]

        async def publish() -> None:
            world.publish(delay=60)
            await store.commit()

        await asyncio.gather(*(publish() for _ in range(50)))
        return len(written)

    assert in_store(tmp_path / "db", publish_many) == 1
    assert len(contents(tmp_path / "db").messages) == 50


def test_failed_commit_is_an_error_and_is_written_with_the_next(tmp_path: Path, make_world: MakeWorld) -> None:
    async def fail_then_go_on(store: SqliteStore, _recovered: Recovered) -> None:
        world = make_world(store)
        write = store._write

        def full_disk(batch: object) -> None:
            raise sqlite3.OperationalError("disk is full")

        store._write = full_disk  # type: ignore[method-assign]
        world.publish(delay=60)
        with pytest.raises(StoreError, match="disk is full"):
            await store.commit()
        store._write = write  # type: ignore[method-assign]
        await store.commit()

    in_store(tmp_path / "db", fail_then_go_on)

    assert len(contents(tmp_path / "db").messages) == 1


def test_database_in_use_is_refused_and_named(tmp_path: Path) -> None:
    async def open_again(_store: SqliteStore, _recovered: Recovered) -> None:
        with pytest.raises(ConfigurationError, match="is another server using it"):
            await SqliteStore(tmp_path / "db").load()

    in_store(tmp_path / "db", open_again)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database, but long enough to be looked at" * 100)

    with pytest.raises(ConfigurationError, match="cannot open"):
        contents(tmp_path / "db")


def test_database_of_another_version_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute("PRAGMA user_version=99")
    connection.close()

    with pytest.raises(ConfigurationError, match="format 99"):
        contents(tmp_path / "db")


def test_documents_are_replaced_removed_and_found_again(tmp_path: Path) -> None:
    def document(key: str, **data: Any) -> Document:
        return Document(account="defaultUser", kind="thing", key=key, data=data)

    async def write(store: SqliteStore, _recovered: Recovered) -> None:
        store.put_document(document("a/b", first=1))
        store.put_document(document("gone"))
        await store.commit()
        store.put_document(document("a/b", second="ü"))
        store.remove_document("defaultUser", "thing", "gone")
        store.remove_document("defaultUser", "thing", "never")
        await store.commit()

    in_store(tmp_path / "db", write)

    assert contents(tmp_path / "db").documents == [document("a/b", second="ü")]


def test_file_gives_back_the_space_of_a_large_backlog(tmp_path: Path) -> None:
    path, log = tmp_path / "db", tmp_path / "db-wal"
    documents = [Document(account="a", kind="k", key=f"{number}", data={"x": "y" * 20_000}) for number in range(1500)]

    async def fill_and_empty(store: SqliteStore, _found: Recovered) -> int:
        for document in documents:
            store.put_document(document)
        await store.commit()
        for document in documents[1:]:
            store.remove_document(document.account, document.kind, document.key)
        await store.commit()
        assert log.stat().st_size > 24_000_000
        store.put_document(documents[1])
        await store.commit()
        return log.stat().st_size

    assert in_store(path, fill_and_empty) < 17_000_000
    assert path.stat().st_size > 24_000_000

    assert contents(path).documents == documents[:2]
    assert path.stat().st_size < 1_000_000
    assert contents(path).documents == documents[:2]
