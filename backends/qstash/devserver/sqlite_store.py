"""The store in one SQLite file: group commits by a single writer thread.

Everything staged while one transaction is being written goes into the next one, so that many
publishers share one disk flush. Rows go in by many-row statements: each statement releases and takes
back the interpreter lock once, and row by row the writer would wait for a busy event loop each time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from queuebridge.backends.qstash.devserver.messages import (
    DeadLetter,
    Deduplication,
    Document,
    Message,
    Recovered,
)
from queuebridge.backends.qstash.devserver.records import (
    decode_dead_letter,
    decode_message,
    encode_dead_letter,
    encode_json,
    encode_message,
)
from queuebridge.backends.qstash.devserver.store import StoreError
from queuebridge.errors import ConfigurationError

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 2
_LAZY_SECONDS: Final = 0.02
_MAX_JOURNAL_BYTES: Final = 16 * 1024 * 1024  # that it is cut to after one large transaction
_MIN_UNUSED_PAGES: Final = 2048  # 8 MiB
_MAX_ROWS: Final = 64  # per statement; with 8 columns within the 999 variables of old SQLite builds

_SCHEMA: Final = """
CREATE TABLE message (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, account TEXT NOT NULL, created INTEGER NOT NULL,
    not_before INTEGER NOT NULL, spec TEXT NOT NULL, hold TEXT, body BLOB NOT NULL);
CREATE TABLE progress (seq INTEGER PRIMARY KEY, retried INTEGER NOT NULL, due REAL NOT NULL,
    cancel INTEGER NOT NULL);
CREATE TABLE dead (key TEXT PRIMARY KEY, account TEXT NOT NULL, data TEXT NOT NULL,
    body BLOB NOT NULL, response BLOB NOT NULL);
CREATE TABLE dedup (key TEXT PRIMARY KEY, account TEXT NOT NULL, message_id TEXT NOT NULL,
    expires REAL NOT NULL);
CREATE TABLE document (id TEXT PRIMARY KEY, account TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    data TEXT NOT NULL)
"""
_COLUMNS: Final = {"message": 8, "progress": 4, "dead": 5, "dedup": 4, "document": 5}
_KEYS: Final = {"message": "seq", "progress": "seq", "dead": "key", "dedup": "key", "document": "id"}

T = TypeVar("T")
Row = tuple[Any, ...]
# Table, then key, then the whole row, or None for its removal: the last change of a key wins.
Batch = dict[str, dict[Any, Row | None]]


class SqliteStore:
    """A `Store` in a SQLite file, for one server at a time.

    With `durable` (the default) a commit survives a power cut, otherwise only the end of the process.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path = path
        self._durable = durable
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queuebridge-store")
        self._staged: Batch = {table: {} for table in _COLUMNS}
        self._waiting: list[asyncio.Future[None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def load(self) -> Recovered:
        """Open the file, creating it if absent; see `Store.load`."""
        try:
            recovered = await self._in_thread(self._open)
        except sqlite3.Error as error:
            await self._release()
            hint = " (is another server using it?)" if "locked" in str(error) else ""
            message = f"cannot open the server's database {self._path}: {error}{hint}"
            raise ConfigurationError(message) from error
        except BaseException:
            await self._release()
            raise
        return recovered

    def add_message(self, message: Message) -> None:
        """See `Store.add_message`."""
        self._stage("message", message.seq, encode_message(message))

    def update_message(self, message: Message) -> None:
        """See `Store.update_message`."""
        row = (message.seq, message.retried, message.due, int(message.cancel_requested))
        self._stage("progress", message.seq, row)

    def remove_message(self, message: Message) -> None:
        """See `Store.remove_message`."""
        self._stage("message", message.seq, None)
        self._stage("progress", message.seq, None)

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """See `Store.add_dead_letter`."""
        message = letter.message
        key = f"{message.account}/{letter.dlq_id}"
        row = (key, message.account, encode_dead_letter(letter), message.body, letter.outcome.body)
        self._stage("dead", key, row)

    def remove_dead_letter(self, letter: DeadLetter) -> None:
        """See `Store.remove_dead_letter`."""
        self._stage("dead", f"{letter.message.account}/{letter.dlq_id}", None)

    def add_deduplication(self, record: Deduplication) -> None:
        """See `Store.add_deduplication`."""
        key = f"{record.account}/{record.key}"
        self._stage("dedup", key, (key, record.account, record.message_id, record.expires_at))

    def remove_deduplication(self, record: Deduplication) -> None:
        """See `Store.remove_deduplication`."""
        self._stage("dedup", f"{record.account}/{record.key}", None)

    def put_document(self, document: Document) -> None:
        """See `Store.put_document`."""
        account, kind, key = document.account, document.kind, document.key
        row_id = _document_id(account, kind, key)
        self._stage("document", row_id, (row_id, account, kind, key, encode_json(document.data)))

    def remove_document(self, account: str, kind: str, key: str) -> None:
        """See `Store.remove_document`."""
        self._stage("document", _document_id(account, kind, key), None)

    async def commit(self) -> None:
        """See `Store.commit`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._start_writing()
        await waiter

    async def close(self) -> None:
        """See `Store.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._connection is not None:
                await self.commit()
        except StoreError:
            logger.warning("closed with unwritten changes: path=%s", self._path)
        finally:
            await self._release()

    def _stage(self, table: str, key: object, row: Row | None) -> None:
        self._staged[table][key] = row
        if self._timer is None and self._writing is None and self._connection is not None:
            self._timer = asyncio.get_running_loop().call_later(_LAZY_SECONDS, self._start_writing)

    def _start_writing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_staged())

    async def _write_staged(self) -> None:
        """Write batch after batch while somebody waits; what nobody waits for goes by the timer."""
        try:
            while True:
                # Lets every request that is ready in this turn of the loop stage into the same batch.
                await asyncio.sleep(0)
                waiting, self._waiting = self._waiting, []
                batch, self._staged = self._staged, {table: {} for table in _COLUMNS}
                await self._write_batch(batch, waiting)
                if not self._waiting:
                    break
        finally:
            self._writing = None
            if any(self._staged.values()) and self._timer is None and not self._closed:
                self._timer = asyncio.get_running_loop().call_later(_LAZY_SECONDS, self._start_writing)

    async def _write_batch(self, batch: Batch, waiting: list[asyncio.Future[None]]) -> None:
        try:
            if any(batch.values()):
                await self._in_thread(self._write, batch)
        except Exception as error:
            logger.exception("could not write, will try again: path=%s", self._path)
            for table, rows in batch.items():
                self._staged[table] = rows | self._staged[table]
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(StoreError(str(error)))
        else:
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._in_thread(connection.close)
        self._thread.shutdown(wait=True)

    # What follows runs in the writer thread.

    def _open(self) -> Recovered:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=1.0)
        self._connection = connection
        # Two servers on one file would deliver everything twice.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
        connection.execute(f"PRAGMA journal_size_limit={_MAX_JOURNAL_BYTES}")
        connection.execute("BEGIN EXCLUSIVE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
        if version not in {0, SCHEMA_VERSION}:
            raise ConfigurationError(
                f"the server's database {self._path} has format {version}, not {SCHEMA_VERSION}"
            )
        # A later message may get the number of one that is gone, and must not take over where that stood.
        connection.execute("DELETE FROM progress WHERE seq NOT IN (SELECT seq FROM message)")
        found = _read_all(connection)
        self._give_back_space(connection)
        return found

    def _give_back_space(self, connection: sqlite3.Connection) -> None:
        """Shrink a file that is mostly empty, as after a large backlog: SQLite itself never does."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
        if unused < _MIN_UNUSED_PAGES or unused * 2 < pages:
            return
        try:
            connection.execute("VACUUM")
        except sqlite3.Error as error:  # such as a disk with no room for the copy
            logger.warning("could not shrink the database: path=%s error=%s", self._path, error)

    def _write(self, batch: Batch) -> None:
        connection = self._connection
        if connection is None:
            raise sqlite3.ProgrammingError("the store is not open")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in _statements(batch):
                connection.execute(statement, values)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _statements(batch: Mapping[str, Mapping[Any, Row | None]]) -> Iterator[tuple[str, list[Any]]]:
    for table, changes in batch.items():
        rows = [row for row in changes.values() if row is not None]
        mark = "(" + ",".join("?" * _COLUMNS[table]) + ")"
        for chunk in _chunks(rows):
            text = f"REPLACE INTO {table} VALUES " + ",".join([mark] * len(chunk))  # noqa: S608 - no input
            yield text, [value for row in chunk for value in row]
        gone = [key for key, row in changes.items() if row is None]
        for chunk in _chunks(gone):
            marks = ",".join("?" * len(chunk))
            yield f"DELETE FROM {table} WHERE {_KEYS[table]} IN ({marks})", chunk  # noqa: S608 - no input


def _chunks(rows: list[Any]) -> Iterator[list[Any]]:
    """Split into lengths that are powers of two: few distinct statements, so each stays prepared."""
    start = 0
    while start < len(rows):
        size = min(_MAX_ROWS, 1 << ((len(rows) - start).bit_length() - 1))
        yield rows[start : start + size]
        start += size


def _read_all(connection: sqlite3.Connection) -> Recovered:
    found = Recovered()
    rows = connection.execute(
        "SELECT message.*, retried, due, cancel FROM message LEFT JOIN progress USING (seq) ORDER BY seq"
    )
    for *row, retried, due, cancel in rows:
        message = decode_message(row)
        if retried is not None:
            message.retried, message.due, message.cancel_requested = retried, due, bool(cancel)
        found.messages.append(message)
    for key, account, data, body, response in connection.execute(
        "SELECT key, account, data, body, response FROM dead"
    ):
        found.dead_letters.append(decode_dead_letter(key[len(account) + 1 :], data, body, response))
    found.dead_letters.sort(key=lambda letter: (letter.entered_ms, int(letter.dlq_id.rpartition("-")[2])))
    for key, account, message_id, expires in connection.execute(
        "SELECT key, account, message_id, expires FROM dedup ORDER BY expires"
    ):
        record = Deduplication(
            account=account, key=key[len(account) + 1 :], message_id=message_id, expires_at=expires
        )
        found.deduplication.append(record)
    for account, kind, key, data in connection.execute(
        "SELECT account, kind, key, data FROM document ORDER BY id"
    ):
        found.documents.append(Document(account=account, kind=kind, key=key, data=json.loads(data)))
    return found


def _document_id(account: str, kind: str, key: str) -> str:
    return f"{account}/{kind}/{key}"
