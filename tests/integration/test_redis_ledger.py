"""What only the ledger in Redis promises: round trips, lost answers, outages, and what it asks of the server."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from ledgers import DONE, GRACE, LEASE, claim_request, held, new_dispatch, planned, shadow_note, write_mark
from processes import Spawner, answers, free_port, run_python, wait_until
from redis_service import RedisService
from relays import Relay
from services import OwnServer, ServiceUnavailableError, binary

from queuebridge.errors import ConfigurationError, LedgerUnavailable
from queuebridge.ledger import ExecutionFilter, Granted, Ledger, NewDispatch, Settled, State, WriteState
from queuebridge.stages import Role, Side
from queuebridge.storage.redis import RedisLedger, create_ledger
from queuebridge.storage.redis.connection import failure
from queuebridge.storage.redis.keys import DEFAULT_PREFIX

SECRET = "p4ssw0rd"


@contextmanager
def redis_on(port: int, *options: str) -> Iterator[str]:
    """Run a Redis of our own on a port, and give its URL."""
    try:
        program = binary("redis-server", "valkey-server")
    except ServiceUnavailableError as error:
        pytest.skip(str(error))
    own = OwnServer("redis")
    own.start([program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", *options])
    url = f"redis://127.0.0.1:{port}/0"
    try:
        wait_until(lambda: RedisService.problem(url) is None, what="Redis to answer")
        yield url
    finally:
        own.stop()


@pytest.fixture
def own_redis() -> Iterator[str]:
    """A Redis whose settings the test may change."""
    with redis_on(free_port()) as url:
        yield url


@pytest.fixture
def ledger(redis_url: str) -> Iterator[RedisLedger]:
    """A ledger in an empty database, and all its scripts known to Redis."""
    made = RedisLedger.from_url(redis_url)
    use_everything(made)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    yield made
    made.close()


@pytest.fixture
def relay(redis_url: str) -> Iterator[Relay]:
    """A relay in front of the server."""
    place = urlsplit(redis_url)
    assert place.hostname is not None
    with Relay(free_port(), place.hostname, place.port or 6379) as made:
        yield made


@pytest.fixture
def relayed(ledger: RedisLedger, redis_url: str, relay: Relay) -> Iterator[RedisLedger]:
    """The same ledger, reached through the relay, with a connection that is open."""
    made = RedisLedger.from_url(f"redis://127.0.0.1:{relay.port}{urlsplit(redis_url).path}")
    made.now_ms()
    yield made
    made.close()


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is sent to Redis from now on, in the pieces in which an answer is awaited."""
    sent: list[object] = []
    original = redis.connection.AbstractConnection.send_packed_command

    def send(self: redis.connection.AbstractConnection, command: object, *args: object, **kwargs: object) -> None:
        sent.append(command)
        original(self, command, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", send)
    return sent


OPERATIONS: dict[str, Callable[[Ledger, NewDispatch], object]] = {
    "record": lambda ledger, known: ledger.record([new_dispatch(), known, new_dispatch()]),
    "mark": lambda ledger, known: ledger.mark([write_mark(known), write_mark(known, side=Side.PUSH)], check_in_ms=1),
    "claim": lambda ledger, known: ledger.claim(claim_request(known), grace_ms=GRACE),
    "claim of an unknown one": lambda ledger, known: ledger.claim(claim_request(), grace_ms=GRACE),
    "renew": lambda ledger, known: ledger.renew(known.dispatch_id, 1, lease_ms=LEASE, grace_ms=GRACE),
    "settle": lambda ledger, known: ledger.settle(known.dispatch_id, 1, DONE),
    "release": lambda ledger, known: release(ledger, known, 1),
    "note_shadow": lambda ledger, known: ledger.note_shadow(shadow_note(known)),
    "cancel": lambda ledger, known: ledger.cancel(known.job_id),
    "withdraw": lambda ledger, known: ledger.withdraw(known.dispatch_id),
    "take_due": lambda ledger, known: ledger.take_due(10, lease_ms=LEASE),
    "check_in": lambda ledger, known: ledger.check_in(known.dispatch_id, 0),
    "release_held": lambda ledger, known: ledger.release_held(),
    "put_payload": lambda ledger, known: ledger.put_payload("k1", b"body", keep_ms=LEASE),
    "get_payload": lambda ledger, known: ledger.get_payload("k1"),
    "purge": lambda ledger, known: ledger.purge(settled_before_ms=0, limit=1),
    "now_ms": lambda ledger, known: ledger.now_ms(),
    "get": lambda ledger, known: ledger.executions.get(known.dispatch_id),
    "deliveries": lambda ledger, known: ledger.executions.deliveries([known.dispatch_id, "other"]),
    "current": lambda ledger, known: ledger.stages.current(),
    "add": lambda ledger, known: ledger.stages.add("{}", after=0, author="a", reason="r"),
    "report_process": lambda ledger, known: ledger.stages.report_process("p1", "worker", 0),
    "processes": lambda ledger, known: ledger.stages.processes(within_ms=LEASE),
    "forget_process": lambda ledger, known: ledger.stages.forget_process("p1"),
}


def release(ledger: Ledger, dispatch: NewDispatch, token: int) -> bool:
    return ledger.release(dispatch.dispatch_id, token, retry_in_ms=0, grace_ms=GRACE, error="no", traceback=None)


def use_everything(ledger: Ledger) -> None:
    for operation in OPERATIONS.values():
        operation(ledger, new_dispatch())


def recorded(ledger: Ledger) -> NewDispatch:
    dispatch = new_dispatch()
    ledger.record([dispatch])
    return dispatch


def granted(ledger: Ledger, dispatch: NewDispatch) -> Granted:
    claim = ledger.claim(claim_request(dispatch), grace_ms=GRACE)
    assert isinstance(claim, Granted)
    return claim


def attempts(ledger: Ledger, dispatch: NewDispatch) -> int:
    execution = ledger.executions.get(dispatch.dispatch_id)
    assert execution is not None
    return execution.attempts


def run_job(ledger: Ledger) -> NewDispatch:
    dispatch = recorded(ledger)
    ledger.mark([write_mark(dispatch)])
    assert ledger.settle(dispatch.dispatch_id, granted(ledger, dispatch).token, DONE)
    return dispatch


class TestRoundTrips:
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_operation_is_one_round_trip(self, ledger: RedisLedger, round_trips: list[object], name: str) -> None:
        dispatch = recorded(ledger)
        round_trips.clear()

        OPERATIONS[name](ledger, dispatch)

        assert len(round_trips) == 1

    def test_whole_job_is_four_round_trips(self, ledger: RedisLedger, round_trips: list[object]) -> None:
        ledger.now_ms()
        round_trips.clear()

        run_job(ledger)

        assert len(round_trips) == 4

    def test_script_that_redis_has_forgotten_is_sent_once(self, own_redis: str, round_trips: list[object]) -> None:
        ledger = create_ledger(own_redis)
        ledger.claim(claim_request(), grace_ms=GRACE)
        redis.Redis.from_url(own_redis).script_flush()
        taken = []

        for _ in range(3):
            round_trips.clear()
            ledger.claim(claim_request(), grace_ms=GRACE)
            taken.append(len(round_trips))

        assert taken == [2, 1, 1]
        ledger.close()

    def test_work_of_redis_does_not_grow_with_what_is_settled(self, own_redis: str) -> None:
        ledger = create_ledger(own_redis)
        run_job(ledger)
        with redis.Redis.from_url(own_redis) as client:

            def commands() -> Counter[str]:
                client.config_resetstat()
                run_job(ledger)
                return Counter({name: stats["calls"] for name, stats in client.info("commandstats").items()})

            before = commands()
            for _ in range(500):
                run_job(ledger)
            after = commands()

        assert before == after
        ledger.close()

    def test_failed_ones_are_found_without_reading_those_that_are_done(
        self, ledger: RedisLedger, round_trips: list[object]
    ) -> None:
        dispatch = recorded(ledger)
        ledger.cancel(dispatch.job_id)
        done = [new_dispatch() for _ in range(1500)]
        ledger.record(done)
        for other in done:
            ledger.settle(other.dispatch_id, granted(ledger, other).token, DONE)
        round_trips.clear()

        found = ledger.executions.recent(ExecutionFilter(states=(State.CANCELLED,)), limit=10)

        assert [execution.dispatch_id for execution in found] == [dispatch.dispatch_id]
        assert len(round_trips) == 3  # the index, what to choose by, the execution


class TestLostAnswers:
    def test_claim_is_not_asked_again(self, ledger: RedisLedger, relayed: RedisLedger, relay: Relay) -> None:
        dispatch = recorded(ledger)
        relay.lose_answers()

        with pytest.raises(LedgerUnavailable):
            relayed.claim(claim_request(dispatch), grace_ms=GRACE)

        execution = ledger.executions.get(dispatch.dispatch_id)
        assert execution is not None
        assert (execution.state, execution.attempts) == (State.RUNNING, 1)
        assert len(ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]) == 1

    def test_due_dispatches_are_not_taken_twice(self, ledger: RedisLedger, relayed: RedisLedger, relay: Relay) -> None:
        dispatch = recorded(ledger)
        ledger.check_in(dispatch.dispatch_id, 0)
        relay.lose_answers()

        with pytest.raises(LedgerUnavailable):
            relayed.take_due(1, lease_ms=LEASE)

        execution = ledger.executions.get(dispatch.dispatch_id)
        assert execution is not None
        assert execution.epoch == 1

    def test_record_is_not_said_to_be_known(self, ledger: RedisLedger, relayed: RedisLedger, relay: Relay) -> None:
        dispatch = new_dispatch()
        relay.lose_answers()

        with pytest.raises(LedgerUnavailable):
            relayed.record([dispatch])

        assert ledger.executions.get(dispatch.dispatch_id) is not None

    def test_settlement_is_repeated(self, ledger: RedisLedger, relayed: RedisLedger, relay: Relay) -> None:
        dispatch = recorded(ledger)
        token = granted(ledger, dispatch).token
        relay.lose_answers()

        settled = relayed.settle(dispatch.dispatch_id, token, DONE)

        execution = ledger.executions.get(dispatch.dispatch_id)
        assert execution is not None
        assert (settled, execution.state, execution.stale_settles) == (True, State.DONE, 0)

    def test_settlement_is_repeated_only_once(self, ledger: RedisLedger, relayed: RedisLedger, relay: Relay) -> None:
        dispatch = recorded(ledger)
        token = granted(ledger, dispatch).token
        relay.lose_answers(2)

        with pytest.raises(LedgerUnavailable):
            relayed.settle(dispatch.dispatch_id, token, DONE)

    def test_release_is_repeated(self, ledger: RedisLedger, relayed: RedisLedger, relay: Relay) -> None:
        dispatch = recorded(ledger)
        token = granted(ledger, dispatch).token
        relay.lose_answers()

        released = release(relayed, dispatch, token)

        execution = ledger.executions.get(dispatch.dispatch_id)
        assert execution is not None
        assert (released, execution.state, execution.stale_settles) == (True, State.WAITING, 0)

    def test_connection_that_broke_while_idle_is_noticed_before_a_claim(
        self, ledger: RedisLedger, relayed: RedisLedger, relay: Relay
    ) -> None:
        dispatch = recorded(ledger)
        relay.cut()
        relay.mend()

        granted(relayed, dispatch)

        assert attempts(ledger, dispatch) == 1


class TestOutages:
    def test_restart_of_redis_is_an_outage_and_then_over(self) -> None:
        port = free_port()
        with redis_on(port) as url:
            ledger = create_ledger(url)
            use_everything(ledger)
        with pytest.raises(LedgerUnavailable):
            ledger.now_ms()
        with pytest.raises(LedgerUnavailable):
            ledger.claim(claim_request(), grace_ms=GRACE)

        with redis_on(port):
            run_job(ledger)
            ledger.close()

    def test_redis_that_does_not_answer_in_time_is_unavailable(self, own_redis: str) -> None:
        ledger = create_ledger(f"{own_redis}?socket_timeout=0.2")
        dispatch = recorded(ledger)
        token = granted(ledger, dispatch).token
        with redis.Redis.from_url(own_redis) as client:
            client.client_pause(30_000, all=False)
            with pytest.raises(LedgerUnavailable):
                ledger.settle(dispatch.dispatch_id, token, DONE)
            client.client_unpause()

        assert ledger.settle(dispatch.dispatch_id, token, DONE)
        ledger.close()

    def test_replica_is_unavailable(self, own_redis: str) -> None:
        with redis.Redis.from_url(own_redis) as client:
            client.replicaof("127.0.0.1", free_port())
            client.config_set("replica-serve-stale-data", "yes")
        ledger = create_ledger(own_redis)

        with pytest.raises(LedgerUnavailable):
            recorded(ledger)
        ledger.close()

    def test_redis_without_memory_is_unavailable_and_records_nothing(self, own_redis: str) -> None:
        ledger = create_ledger(own_redis)
        use_everything(ledger)
        dispatch = new_dispatch()
        with redis.Redis.from_url(own_redis) as client:
            client.config_set("maxmemory", "1mb")
            with pytest.raises(LedgerUnavailable):
                ledger.record([dispatch])
            client.config_set("maxmemory", "0")

        assert ledger.executions.get(dispatch.dispatch_id) is None
        ledger.close()

    @pytest.mark.parametrize("rules", [[], ["+eval", "+evalsha", "~*"]], ids=["of scripts", "in scripts"])
    def test_missing_permission_is_a_mistake_in_the_configuration(self, own_redis: str, rules: list[str]) -> None:
        with redis.Redis.from_url(own_redis) as client:
            client.execute_command("ACL", "SETUSER", "limited", "on", f">{SECRET}", "+ping", *rules)
        ledger = create_ledger(own_redis.replace("://", f"://limited:{SECRET}@"))

        with pytest.raises(ConfigurationError) as caught:
            recorded(ledger)

        assert SECRET not in str(caught.value)
        ledger.close()

    @pytest.mark.parametrize(
        ("before", "after"),
        [("://", f"://default:{SECRET}@"), ("://", f"://nobody:{SECRET}@"), ("/0", "/99"), ("redis://", "http://")],
        ids=["password", "user", "number of the database", "kind of address"],
    )
    def test_wrong_address_is_a_mistake_in_the_configuration(self, own_redis: str, before: str, after: str) -> None:
        with redis.Redis.from_url(own_redis) as client:
            client.config_set("requirepass", "another") if after.startswith("://default") else None

        with pytest.raises(ConfigurationError) as caught:
            create_ledger(own_redis.replace(before, after)).now_ms()

        assert SECRET not in str(caught.value)

    def test_every_error_of_the_library_is_one_of_ours(self) -> None:
        kinds = {
            kind
            for kind in vars(redis.exceptions).values()
            if isinstance(kind, type) and issubclass(kind, redis.RedisError)
        }
        assert len(kinds) > 20

        for kind in kinds:
            error = failure(kind.__new__(kind), "redis://host")
            assert isinstance(error, LedgerUnavailable | ConfigurationError), kind


class TestHealth:
    def test_server_that_keeps_what_it_has_is_not_warned_of(self) -> None:
        with redis_on(free_port(), "--appendonly", "yes") as url:
            ledger = create_ledger(url)
            line = ledger.ping()
            ledger.close()

        assert line.startswith("Redis ")
        assert "warning" not in line

    @pytest.mark.parametrize(
        ("option", "value", "warning"),
        [
            ("maxmemory-policy", "allkeys-lru", "allkeys-lru"),
            ("appendonly", "no", "after the last snapshot"),
            ("save", "", "neither AOF nor snapshots"),
        ],
    )
    def test_server_that_may_lose_the_ledger_is_warned_of(
        self, own_redis: str, option: str, value: str, warning: str
    ) -> None:
        with redis.Redis.from_url(own_redis) as client:
            client.config_set("save", "3600 1")
            client.config_set("appendonly", "yes" if option == "maxmemory-policy" else "no")
            client.config_set(option, value)
        ledger = create_ledger(own_redis)

        line = ledger.ping()

        assert line.count("warning") == 1
        assert warning in line
        ledger.close()

    def test_server_that_forbids_to_ask_answers_still(self, own_redis: str) -> None:
        with redis.Redis.from_url(own_redis) as client:
            client.execute_command("ACL", "SETUSER", "limited", "on", f">{SECRET}", "~*", "+@all", "-config", "-info")
        ledger = create_ledger(own_redis.replace("://", f"://limited:{SECRET}@"))

        line = ledger.ping()

        assert line.startswith("Redis at redis://***@127.0.0.1")
        assert SECRET not in line
        ledger.close()


class TestContents:
    def test_purge_leaves_no_key_behind(self, ledger: RedisLedger, redis_url: str) -> None:
        held_one = new_dispatch(copies=(planned(), held(ledger.now_ms() + LEASE)))
        ledger.record([held_one])
        ledger.settle(held_one.dispatch_id, granted(ledger, held_one).token, DONE)
        cancelled, withdrawn = recorded(ledger), recorded(ledger)
        ledger.note_shadow(shadow_note(cancelled))
        ledger.cancel(cancelled.job_id)
        ledger.note_shadow(shadow_note(withdrawn))
        ledger.withdraw(withdrawn.dispatch_id)

        purged = ledger.purge(settled_before_ms=ledger.now_ms() + 1000, limit=1000)

        with redis.Redis.from_url(redis_url) as client:
            assert (purged, client.keys("*")) == (2, [])

    def test_all_keys_are_in_one_slot_of_a_cluster(self, ledger: RedisLedger, redis_url: str) -> None:
        recorded(ledger)
        ledger.put_payload("k1", b"body", keep_ms=LEASE)
        ledger.stages.add("{}", after=0, author="a", reason="r")

        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            keys = client.keys("*")

        assert len(keys) > 5
        assert [key for key in keys if not key.startswith(DEFAULT_PREFIX)] == []

    def test_last_hundred_deliveries_are_kept(self, ledger: RedisLedger) -> None:
        dispatch = run_job(ledger)

        for number in range(110):
            ledger.claim(claim_request(dispatch, message_id=f"m{number}"), grace_ms=GRACE)

        kept = ledger.executions.deliveries([dispatch.dispatch_id])[dispatch.dispatch_id]
        assert [delivery.message_id for delivery in kept] == [f"m{number}" for number in range(10, 110)]

    def test_text_that_is_not_unicode_does_not_stop_a_settlement(self, ledger: RedisLedger) -> None:
        dispatch = recorded(ledger)
        token = granted(ledger, dispatch).token
        half_a_pair = os.fsdecode(b"name\xff")

        assert ledger.release(
            dispatch.dispatch_id, token, retry_in_ms=0, grace_ms=GRACE, error=half_a_pair, traceback=None
        )
        execution = ledger.executions.get(dispatch.dispatch_id)
        assert execution is not None
        assert execution.error == r"name\udcff"


FORKS = """
import os, sys
from queuebridge.storage.redis import RedisLedger
ledger = RedisLedger.from_url(sys.argv[1])
def identity():
    return ledger._connection.use(lambda client: client.client_id(), repeat=False)
before = identity()
reading, writing = os.pipe()
child = os.fork()
mine = {identity() for _ in range(50)}
if child == 0:
    os.write(writing, repr(mine).encode())
    os._exit(0)
os.waitpid(child, 0)
theirs = eval(os.read(reading, 1000))
assert mine == {before}, (mine, before)
assert len(theirs) == 1 and theirs != mine, (mine, theirs)
ledger.close()
print("apart")
"""


def test_forked_child_has_a_connection_of_its_own(redis_url: str, tmp_path: Path) -> None:
    code = f"import sys\nsys.argv.append({redis_url!r})\n{FORKS}"

    assert run_python(code, cwd=tmp_path) == "apart\n"


def test_embedded_redis_of_the_demo_carries_a_ledger(spawn: Spawner) -> None:
    port = free_port()
    spawn([sys.executable, "-m", "queuebridge.demo.embedded_redis", str(port)])
    wait_until(lambda: answers(port), 20, what="the embedded Redis")
    ledger = create_ledger(f"redis://127.0.0.1:{port}/0")

    use_everything(ledger)
    dispatch = new_dispatch(copies=(planned(Side.PUSH), held(ledger.now_ms() + LEASE, Side.LEGACY)))
    ledger.record([dispatch])
    ledger.mark([write_mark(dispatch, WriteState.WRITTEN, side=Side.PUSH, role=Role.PREFERRED, message_id="m1")])
    token = granted(ledger, dispatch).token

    assert token > ledger.now_ms() * 1000 - 10_000_000
    assert ledger.settle(dispatch.dispatch_id, token, DONE)
    assert ledger.claim(claim_request(dispatch), grace_ms=GRACE) == Settled(state=State.DONE, owner="host:1:worker")
    assert ledger.ping().startswith("Redis")
    ledger.close()
