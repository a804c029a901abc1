"""What is particular to the ledger in SQL: its schema, its plans, the caller's transaction, lost connections."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ledgers import DEADLINE, DONE, GRACE, HOUR, claim_request, new_dispatch, write_mark
from postgres_service import PostgresService
from processes import Spawner, run_python
from services import ServiceUnavailableError
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.orm import Session

from queuebridge.errors import ConfigurationError, LedgerUnavailable
from queuebridge.ledger import ExecutionFilter, Granted, State
from queuebridge.stages import Side
from queuebridge.storage.sql import SqlLedger, schema_problem, upgrade
from queuebridge.storage.sql.engine import parse_url
from queuebridge.storage.sql.tables import SCHEMA_REVISION, VERSION_TABLE, metadata

NEWER = "9999"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def url(empty_url: str) -> str:
    """A database with the ledger's schema."""
    upgrade(empty_url)
    return empty_url


@pytest.fixture
def ledger(url: str) -> Iterator[SqlLedger]:
    """An empty ledger."""
    with closing(SqlLedger.from_url(url)) as ledger:
        yield ledger


@contextmanager
def application(url: str) -> Iterator[Engine]:
    """Give an engine as an application has it, on the database of the ledger."""
    engine = create_engine(parse_url(url))
    try:
        yield engine
    finally:
        engine.dispose()


def set_version(url: str, version: str) -> None:
    with application(url) as engine, engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :version"), {"version": version})


def schema_of(connection: Connection) -> list[str]:
    """Return what the database itself says of tables and indexes."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, replace(sql, char(9), '') FROM sqlite_master WHERE sql IS NOT NULL"
    else:
        query = """
            SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()
            UNION ALL
            SELECT table_name || '.' || column_name, concat_ws(' ', data_type, is_nullable, column_default)
            FROM information_schema.columns WHERE table_schema = current_schema()
        """
    rows = connection.execute(text(query))
    return sorted(" ".join(f"{name}: {what}".split()) for name, what in rows if not name.startswith(VERSION_TABLE))


class TestSchema:
    def test_fresh_schema_equals_an_upgraded_one(self, url: str) -> None:
        with application(url) as engine:
            with engine.connect() as connection:
                upgraded = schema_of(connection)
            with engine.begin() as connection:
                metadata.drop_all(connection)
                metadata.create_all(connection)
            with engine.connect() as connection:
                fresh = schema_of(connection)

        assert len(fresh) > 10
        assert upgraded == fresh

    def test_alembic_finds_no_difference_to_the_tables_in_the_code(self, url: str) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        with application(url) as engine, engine.begin() as connection:
            # Of the application, and not ours to judge.
            connection.execute(text("CREATE TABLE customers (id INTEGER PRIMARY KEY)"))
            context = MigrationContext.configure(
                connection,
                opts={
                    "compare_type": True,
                    "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
                },
            )

            assert compare_metadata(context, metadata) == []

    def test_revision_that_the_code_needs_is_the_newest_one(self, url: str) -> None:
        from alembic.script import ScriptDirectory

        from queuebridge.storage.sql.migrations import alembic_config

        with application(url) as engine, engine.connect() as connection:
            scripts = ScriptDirectory.from_config(alembic_config(connection))

        assert scripts.get_current_head() == SCHEMA_REVISION

    def test_second_upgrade_changes_nothing(self, url: str) -> None:
        assert upgrade(url) == f"The ledger has schema {SCHEMA_REVISION} already."

    def test_tables_of_the_application_stay(self, empty_url: str) -> None:
        with application(empty_url) as engine:
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE customers (id INTEGER PRIMARY KEY)"))
                connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
                connection.execute(text("INSERT INTO alembic_version VALUES ('of the application')"))
            upgrade(empty_url)

            with engine.connect() as connection:
                assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "of the application"
                assert inspect(connection).has_table("customers")

    def test_concurrent_upgrades_are_done_once(self, empty_url: str, spawn: Spawner) -> None:
        program = f"from queuebridge.storage.sql import upgrade\nprint(upgrade({empty_url!r}))"
        said: list[str] = []
        threads = [
            threading.Thread(target=lambda: said.append(run_python(program, cwd=Path.cwd()).strip())) for _ in range(3)
        ]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted("already" in line for line in said) == [False, True, True], said

    def test_ledger_without_schema_says_how_to_get_it(self, empty_url: str) -> None:
        with closing(SqlLedger.from_url(empty_url)) as ledger:
            with pytest.raises(ConfigurationError, match="queuebridge ledger upgrade"):
                ledger.ping()

            upgrade(empty_url)

            assert SCHEMA_REVISION in ledger.ping()

    @pytest.mark.parametrize(
        ("version", "advice"), [("0000", "queuebridge ledger upgrade"), (NEWER, "this installation .* is older")]
    )
    def test_schema_of_another_version_is_refused(self, url: str, version: str, advice: str) -> None:
        set_version(url, version)

        with closing(SqlLedger.from_url(url)) as ledger, pytest.raises(ConfigurationError, match=advice):
            ledger.record([new_dispatch()])

    def test_newer_schema_is_not_upgraded(self, url: str) -> None:
        set_version(url, NEWER)

        with pytest.raises(ConfigurationError, match="older"):
            upgrade(url)

    def test_missing_table_is_a_matter_of_the_schema(self, url: str) -> None:
        with closing(SqlLedger.from_url(url)) as ledger:
            ledger.ping()
            with application(url) as engine, engine.begin() as connection:
                metadata.drop_all(connection)

            with pytest.raises(ConfigurationError, match="queuebridge ledger upgrade"):
                ledger.record([new_dispatch()])

    def test_schema_problem_of_a_good_schema_is_none(self, url: str) -> None:
        with application(url) as engine:
            assert schema_problem(engine) is None


class TestAddress:
    @pytest.mark.parametrize(
        "url",
        ["sqlite://", "sqlite:///:memory:", "mysql://user:secret-word@host/db", "nothing", "postgresql+asyncpg://x"],
    )
    def test_address_of_no_ledger_is_refused_without_showing_it(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_LEDGER") as error:
            SqlLedger.from_url(url)

        assert "secret-word" not in str(error.value)

    @pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
    def test_both_schemes_of_postgresql_work(self, postgres_url: str, scheme: str) -> None:
        url = postgres_url.replace("postgresql", scheme, 1)
        upgrade(url)

        with closing(SqlLedger.from_url(url)) as ledger:
            assert "PostgreSQL" in ledger.ping()

    def test_password_is_in_no_error_and_no_repr(self) -> None:
        with closing(SqlLedger.from_url("postgresql://user:secret-word@127.0.0.1:1/ledger")) as ledger:
            with pytest.raises(LedgerUnavailable) as error:
                ledger.ping()

            assert "secret-word" not in f"{error.value}{ledger!r}{vars(ledger)}"


class TestCallersTransaction:
    def test_dispatch_exists_once_the_caller_commits(self, ledger: SqlLedger, url: str) -> None:
        dispatch = new_dispatch()
        with application(url) as engine:
            with engine.begin() as connection:
                answers = ledger.record_on(connection, [dispatch])
            again = ledger.record([dispatch])

        assert answers[0].new
        assert not again[0].new
        assert ledger.executions.get(dispatch.dispatch_id) is not None

    def test_dispatch_does_not_exist_if_the_caller_rolls_back(self, ledger: SqlLedger, url: str) -> None:
        dispatch = new_dispatch()
        with application(url) as engine, engine.connect() as connection:
            ledger.record_on(connection, [dispatch])
            connection.rollback()

        assert ledger.executions.get(dispatch.dispatch_id) is None

    def test_session_takes_the_dispatch_along(self, ledger: SqlLedger, url: str) -> None:
        kept, dropped = new_dispatch(), new_dispatch()
        with application(url) as engine, Session(engine) as session:
            ledger.record_on(session, [dropped])
            session.rollback()
            ledger.record_on(session, [kept])
            session.commit()

        assert ledger.executions.get(kept.dispatch_id) is not None
        assert ledger.executions.get(dropped.dispatch_id) is None

    def test_nobody_sees_it_before_the_commit(self, postgres_url: str) -> None:
        upgrade(postgres_url)
        dispatch = new_dispatch(check_in_ms=0)
        with closing(SqlLedger.from_url(postgres_url)) as ledger, application(postgres_url) as engine:
            with engine.connect() as connection:
                ledger.record_on(connection, [dispatch])
                before = ledger.take_due(10, lease_ms=HOUR)
                connection.commit()

            assert before == []
            assert [due.execution.dispatch_id for due in ledger.take_due(10, lease_ms=HOUR)] == [dispatch.dispatch_id]

    def test_database_without_ledger_is_a_matter_of_the_configuration(self, empty_url: str) -> None:
        ledger = SqlLedger.from_url(empty_url)
        advice = pytest.raises(ConfigurationError, match="queuebridge ledger upgrade")

        with application(empty_url) as engine, engine.connect() as connection, advice:
            ledger.record_on(connection, [new_dispatch()])


def statements_of(ledger: SqlLedger, act: Callable[[], object]) -> list[tuple[str, Any]]:
    """Return what an act sends to the database."""
    engine = ledger._database._engine()
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return sent


class TestRoundTrips:
    @pytest.fixture
    def ledger(self, postgres_url: str) -> Iterator[SqlLedger]:
        upgrade(postgres_url)
        with closing(SqlLedger.from_url(postgres_url)) as ledger:
            ledger.ping()
            yield ledger

    def test_each_act_of_an_ordinary_job_is_one_statement(self, ledger: SqlLedger) -> None:
        dispatch = new_dispatch()
        token = 0

        def claim() -> None:
            nonlocal token
            granted = ledger.claim(claim_request(dispatch), grace_ms=GRACE)
            assert isinstance(granted, Granted)
            token = granted.token

        both = [write_mark(dispatch), write_mark(dispatch, side=Side.PUSH)]
        acts: dict[str, Callable[[], object]] = {
            "record": lambda: ledger.record([dispatch]),
            "mark": lambda: ledger.mark(both),
            "claim": claim,
            "renew": lambda: ledger.renew(dispatch.dispatch_id, token, lease_ms=1000, grace_ms=GRACE),
            "settle": lambda: ledger.settle(dispatch.dispatch_id, token, DONE),
        }

        assert {name: len(statements_of(ledger, act)) for name, act in acts.items()} == dict.fromkeys(acts, 1)


SETTLED_ROWS = 3000


NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)",
    "postgresql": "WITH numbers(n) AS (SELECT generate_series(1, CAST(:count AS integer)))",
}


def settle_many(connection: Connection, count: int, now_ms: int) -> None:
    """Add dispatches that have ended, one in each of the last milliseconds, with a delivery each."""
    numbers = NUMBERS[connection.dialect.name]
    connection.execute(
        text(f"""
            INSERT INTO queuebridge_dispatches (
                dispatch_id, job_id, task, queue, state, attempts, max_attempts, epoch, token, deadline_ms,
                enqueued_at_ms, accepted_at_ms, finished_at_ms, stale_settles, payload)
            {numbers} SELECT 'settled-' || n, 'job-' || n, 'task-' || (n % 10), 'default', 'done', 1, 3, 0, n, 0,
                0, :now_ms - n, :now_ms - n, 0, '' FROM numbers
        """),
        {"count": count, "now_ms": now_ms},
    )
    connection.execute(
        text(f"""
            INSERT INTO queuebridge_deliveries (dispatch_id, backend, message_id, at_ms, lag_ms, outcome)
            {numbers} SELECT 'settled-' || n, 'rq', 'id', 0, 0, 'granted' FROM numbers
        """),
        {"count": count},
    )


class TestPlans:
    """Nothing looks at all dispatches, however many have ended."""

    @pytest.fixture
    def ledger(self, url: str) -> Iterator[SqlLedger]:
        with closing(SqlLedger.from_url(url)) as ledger:
            now_ms = ledger.now_ms()
            with application(url) as engine, engine.begin() as connection:
                settle_many(connection, SETTLED_ROWS, now_ms)
                connection.execute(text("ANALYZE"))
            yield ledger

    def test_every_statement_uses_an_index(self, ledger: SqlLedger) -> None:
        one = new_dispatch(task="task-3", check_in_ms=0)
        ledger.record([one])
        log, first_ended_ms = ledger.executions, ledger.now_ms() - SETTLED_ROWS
        failed = ExecutionFilter(states=(State.FAILED, State.QUARANTINED))
        acts: dict[str, Callable[[], object]] = {
            "mark": lambda: ledger.mark([write_mark(one)]),
            "take due": lambda: ledger.take_due(10, lease_ms=0),
            "release held": ledger.release_held,
            "claim": lambda: ledger.claim(claim_request(one), grace_ms=GRACE),
            "claim again": lambda: ledger.claim(claim_request(one), grace_ms=GRACE),
            "settle": lambda: ledger.settle(one.dispatch_id, 1, DONE),
            "cancel": lambda: ledger.cancel(one.job_id),
            "purge": lambda: ledger.purge(settled_before_ms=first_ended_ms, limit=10),
            "get": lambda: log.get(one.dispatch_id),
            "of job": lambda: log.of_job(one.job_id),
            "recent": lambda: log.recent(ExecutionFilter(), limit=20),
            "recent of a task": lambda: log.recent(ExecutionFilter(task=one.task), limit=20),
            "recent of a state": lambda: log.recent(failed, limit=20),
            "deliveries": lambda: log.deliveries([one.dispatch_id]),
            "scan": lambda: next(log.scan(ExecutionFilter(), page=20)),
            "scan of states": lambda: list(log.scan(failed, page=20)),
        }

        plans = {name: plans_of(ledger, statements_of(ledger, act)) for name, act in acts.items()}

        assert {name: of_act for name, of_act in plans.items() if "INDEX" not in "".join(of_act).upper()} == {}
        lines = [(name, line) for name, of_act in plans.items() for plan in of_act for line in plan.splitlines()]
        assert [(name, line) for name, line in lines if scans_everything(line)] == []

    def test_scan_of_everything_is_noticed(self, ledger: SqlLedger) -> None:
        plans = plans_of(ledger, [("SELECT * FROM queuebridge_dispatches WHERE payload = 'x'", ())])

        assert any(scans_everything(line) for line in plans[0].splitlines()), plans


def plans_of(ledger: SqlLedger, statements: list[tuple[str, Any]]) -> list[str]:
    """Return how the database would execute statements."""
    explain = "EXPLAIN " if ledger._database.is_postgresql else "EXPLAIN QUERY PLAN "
    plans = []
    with ledger._database.connection() as connection:
        for statement, parameters in statements:
            if statement.startswith(("BEGIN", "COMMIT", "ROLLBACK")):
                continue
            result = connection.exec_driver_sql(explain + statement, parameters)
            plans.append("\n".join(str(row[-1]) for row in result))
    assert plans
    return plans


def scans_everything(line: str) -> bool:
    """Say whether a line of a plan reads a whole table of dispatches or deliveries."""
    of_postgresql = "Seq Scan on queuebridge_d" in line
    of_sqlite = line.startswith(("SCAN queuebridge_d", "SCAN TABLE queuebridge_d")) and "INDEX" not in line
    return of_postgresql or of_sqlite


class TestLostConnections:
    def test_connection_closed_by_the_server_while_idle_is_replaced(self, postgres_url: str) -> None:
        upgrade(postgres_url)
        with closing(SqlLedger.from_url(postgres_url)) as ledger, application(postgres_url) as engine:
            ledger.ping()
            with engine.connect() as connection:
                ended = connection.scalar(
                    text(
                        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND application_name = 'queuebridge'"
                    )
                )

            # Not repeated: a repeated record would find the dispatch known.
            assert ended == 1
            assert ledger.record([new_dispatch()])[0].new

    def test_ledger_survives_a_restart_of_the_server(self) -> None:
        try:
            service = PostgresService.start()
        except ServiceUnavailableError as error:
            pytest.skip(str(error))
        assert service.own is not None
        process = service.own._process
        assert process is not None
        try:
            upgrade(service.url)
            with closing(SqlLedger.from_url(service.url)) as ledger:
                dispatch = new_dispatch()
                ledger.record([dispatch])
                process.send_signal(signal.SIGQUIT)  # at once, as in a crash
                process.wait(20)
                with pytest.raises(LedgerUnavailable):
                    ledger.claim(claim_request(dispatch), grace_ms=GRACE)

                service.own.start(process.args)  # type: ignore[arg-type]
                PostgresService._await(service.own, service.url)

                assert isinstance(ledger.claim(claim_request(dispatch), grace_ms=GRACE), Granted)
        finally:
            service.stop()

    def test_server_that_does_not_answer_is_given_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/ledger"
            with closing(SqlLedger.from_url(url)) as ledger, pytest.raises(LedgerUnavailable):
                ledger.ping()

    def test_row_that_somebody_else_has_locked_is_not_waited_for_longer_than_seconds(
        self, ledger: SqlLedger, url: str
    ) -> None:
        dispatch = new_dispatch()
        ledger.record([dispatch])
        with application(url) as engine, engine.begin() as connection:
            connection.execute(text("UPDATE queuebridge_dispatches SET payload = ''"))

            with pytest.raises(LedgerUnavailable):
                ledger.settle(dispatch.dispatch_id, 1, DONE)

        assert isinstance(ledger.claim(claim_request(dispatch), grace_ms=GRACE), Granted)


def use_and_close(ledger: SqlLedger, answers: Any) -> None:
    """In a forked child: use the parent's ledger, and close it."""
    answers.put([ledger.record([new_dispatch(job_id="forked")])[0].new, len(ledger._database._engines)])
    ledger.close()


class TestFork:
    def test_child_leaves_the_connections_of_its_parent_alone(self, ledger: SqlLedger) -> None:
        ledger.record([new_dispatch()])
        engine = ledger._database._engines[os.getpid()]
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        with engine.connect() as connection:
            child = context.Process(target=use_and_close, args=(ledger, answers))
            child.start()
            answer = answers.get(timeout=30)
            child.join(30)

            # The very connection that was open during the fork still answers.
            assert connection.scalar(text("SELECT 1")) == 1

        answers.close()
        answers.join_thread()
        assert child.exitcode == 0
        assert answer == [True, 2]
        assert len(ledger.executions.of_job("forked")) == 1


class TestText:
    def test_what_no_database_can_store_is_replaced(self, ledger: SqlLedger) -> None:
        dispatch = new_dispatch(payload="nul \0 and half a pair \ud83d", deadline_in_ms=DEADLINE)

        ledger.record([dispatch])

        execution = ledger.executions.get(dispatch.dispatch_id)
        assert execution is not None
        assert execution.payload == "nul \ufffd and half a pair ?"
