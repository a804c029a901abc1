"""The verdict over a migration, and its JSON form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from queuebridge.cli.demo_view import print_migration
from queuebridge.demo.attribution import Killed
from queuebridge.demo.draining import Outstanding
from queuebridge.demo.evidence import evidence
from queuebridge.demo.files import expected_measure
from queuebridge.demo.outcomes import JobVerdict, Migration, by_backend, by_step, judge_jobs
from queuebridge.demo.producer import Accepted
from queuebridge.demo.steps import STEPS, divide, step_of
from queuebridge.ledger import ClaimRequest, DeliveryRecord, Execution, Granted, Settlement, State
from queuebridge.receipt import Receipt
from queuebridge.stages import Side, Stage
from queuebridge.storage.memory import MemoryLedger

LIVE = 3
NOTHING_LEFT = Outstanding(unsettled=0, pushed=0, legacy=0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.txt"
    file.write_bytes(b"one\ntwo\n")
    return file


class World:
    """Jobs in a ledger, with the effects that they left."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.ledger = MemoryLedger()
        self.accepted: dict[str, Accepted] = {}
        self.effects: list[dict[str, Any]] = []
        self.killed: list[Killed] = []

    def accept(self, job_id: str, step: int = LIVE) -> None:
        receipt = Receipt(job_id=job_id, dispatch_id=f"{job_id}-d", task="t", queue="q", writes=())
        self.accepted[job_id] = Accepted(receipt=receipt, path=self.source, at=10.0, step=step)

    def claim(self, job_id: str) -> Any:
        return self.ledger.claim(
            ClaimRequest(
                dispatch_id=f"{job_id}-d",
                job_id=job_id,
                task="t",
                queue="q",
                stage="live",
                backend="qstash",
                message_id="m",
                side=Side.PUSH,
                owner="o",
                # It has ended when the next one asks.
                lease_ms=0,
                enqueued_at_ms=0,
                max_attempts=9,
                body=b"",
                payload="",
                deadline_in_ms=1000,
            ),
            grace_ms=0,
        )

    def run(self, job_id: str, *, pid: int = 10, backend: str = "qstash", at: float = 10.5, **changes: Any) -> int:
        claim = self.claim(job_id)
        assert isinstance(claim, Granted)
        effect = {"job_id": job_id, "backend": backend, "path": str(self.source), "pid": pid, "attempt": claim.attempt}
        self.effects.append({**effect, "fence": claim.token, "at": at, **expected_measure(self.source), **changes})
        return claim.token

    def settle(self, job_id: str, token: int) -> None:
        assert self.ledger.settle(f"{job_id}-d", token, Settlement(state=State.DONE))

    def executions(self) -> dict[str, list[Execution]]:
        return {job_id: self.ledger.executions.of_job(job_id) for job_id in self.accepted}

    def deliveries(self) -> dict[str, list[DeliveryRecord]]:
        return {job_id: self.ledger.executions.deliveries([f"{job_id}-d"])[f"{job_id}-d"] for job_id in self.accepted}

    def judge(self) -> dict[str, JobVerdict]:
        return judge_jobs(
            self.accepted,
            self.effects,
            killed=self.killed,
            executions=self.executions(),
            deliveries=self.deliveries(),
            legacy="celery",
        )

    def migration(self, **changes: Any) -> Migration:
        verdicts = self.judge().values()
        values: dict[str, Any] = {
            "legacy": "celery",
            "ledger": "sqlite",
            "broker": "a Redis",
            "seed": None,
            "kills": {},
            "stages": by_step(verdicts, "celery"),
            "backends": by_backend(verdicts, "celery"),
            "strangers": 0,
            "left": NOTHING_LEFT,
        }
        return Migration(**{**values, **changes})


@pytest.fixture
def world(source: Path) -> World:
    return World(source)


@pytest.fixture
def finished(world: World) -> World:
    """A world in which one job of each step took effect once."""
    for step in range(len(STEPS)):
        world.accept(f"j{step}", step)
        world.settle(f"j{step}", world.run(f"j{step}"))
    return world


def test_job_that_took_effect_once_is_neither_lost_nor_doubled(world: World) -> None:
    world.accept("a")
    world.settle("a", world.run("a", at=10.25))

    assert world.judge()["a"] == JobVerdict(
        step=LIVE,
        backend="qstash",
        lost=False,
        duplicated=0,
        rerun_after_kill=0,
        suppressed=0,
        sent_at=10.0,
        done_at=10.25,
    )


def test_safety_copy_that_came_too_late_counts_as_suppressed(world: World) -> None:
    world.accept("a")
    world.settle("a", world.run("a"))
    world.claim("a")
    world.claim("a")

    assert world.judge()["a"].suppressed == 2


def test_job_without_effect_is_lost_on_the_side_that_should_have_run_it(world: World) -> None:
    world.accept("a", step=2)
    world.accept("b", step=LIVE)

    verdicts = world.judge()

    assert (verdicts["a"].lost, verdicts["a"].backend) == (True, "celery")
    assert (verdicts["b"].lost, verdicts["b"].backend) == (True, "qstash")


def test_job_whose_effect_lies_is_lost(world: World) -> None:
    world.accept("a")
    world.settle("a", world.run("a", lines=77))

    assert world.judge()["a"].lost


def test_rerun_of_a_killed_process_is_counted_apart(world: World) -> None:
    world.accept("a")
    world.run("a", pid=10, at=10.5)
    world.killed.append(Killed(pid=10, since=0.0, until=11.0))
    world.settle("a", world.run("a", pid=11, at=12.0))

    verdict = world.judge()["a"]

    assert (verdict.rerun_after_kill, verdict.duplicated, verdict.lost) == (1, 0, False)


def test_second_effect_without_a_kill_is_a_duplicate(world: World) -> None:
    world.accept("a")
    world.run("a")
    world.settle("a", world.run("a", pid=11))

    verdict = world.judge()["a"]

    assert (verdict.rerun_after_kill, verdict.duplicated) == (0, 1)
    assert not world.migration().ok


def test_migration_in_which_all_went_well_is_ok(finished: World) -> None:
    assert finished.migration().ok


@pytest.mark.parametrize(
    "changes",
    [{"strangers": 1}, *({"left": dataclasses.replace(NOTHING_LEFT, **{name: 1})} for name in NOTHING_LEFT.__slots__)],
    ids=["stranger", "unsettled", "pushed", "legacy"],
)
def test_migration_that_left_something_is_not_ok(finished: World, changes: dict[str, Any]) -> None:
    assert not finished.migration(**changes).ok


def test_migration_with_a_step_without_jobs_is_not_ok(finished: World) -> None:
    del finished.accepted["j4"]

    assert not finished.migration().ok


def test_json_form_has_the_documented_keys(finished: World) -> None:
    shown = finished.migration().as_json()

    assert list(shown) == ["ok", "legacy", "ledger", "stages", "backends"]
    assert list(shown["stages"][0]) == [
        "stage",
        "step",
        "jobs",
        "executed_by",
        "suppressed",
        "lost",
        "duplicated",
        "rerun_after_kill",
        "lag_ms",
    ]
    assert list(shown["stages"][0]["executed_by"]) == ["celery", "qstash"]
    assert list(shown["stages"][0]["lag_ms"]) == ["p50", "p95"]
    assert list(shown["backends"][0]) == [
        "name",
        "jobs",
        "executed",
        "lost",
        "duplicated",
        "throughput_per_s",
        "latency_ms",
    ]


def test_json_form_of_chaos_has_the_seed_and_the_kills(finished: World) -> None:
    shown = finished.migration(seed=7, kills={"worker": 2}).as_json()

    assert shown["chaos"] == {"seed": 7, "kills": {"worker": 2}}


def test_table_shows_steps_kills_and_what_is_left(
    finished: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    finished.accept("lost")
    left = dataclasses.replace(NOTHING_LEFT, unsettled=1)

    print_migration(finished.migration(seed=7, kills={"worker": 2, "server": 0}, left=left))

    shown = " ".join(capsys.readouterr().out.split())
    assert "live again" in shown
    assert "Killed: worker 2 times (--seed 7)." in shown
    assert "there were still 1 jobs without an end" in shown
    assert "Not every job took effect exactly once." in shown


def test_evidence_is_given_for_what_went_wrong_only(finished: World) -> None:
    finished.accept("lost")

    lines = list(evidence(finished.judge(), finished.effects, finished.executions(), finished.deliveries()))

    assert len(lines) == 1
    assert lines[0].startswith("job lost of step live (lost)")


def test_evidence_of_a_job_that_ran_twice_has_its_claims_and_effects(world: World) -> None:
    world.accept("a")
    world.run("a", pid=10)
    world.settle("a", world.run("a", pid=11))

    text = "\n".join(evidence(world.judge(), world.effects, world.executions(), world.deliveries()))

    assert "(run twice)" in text
    assert text.count("granted") == 2
    assert "process 10" in text
    assert "process 11" in text


def test_files_are_divided_over_all_steps(source: Path) -> None:
    files = [source.with_name(str(number)) for number in range(50)]

    divided = divide(files)

    assert sorted(path for part in divided for path in part) == sorted(files)
    assert {len(part) for part in divided} == {6, 7}


def test_too_few_files_are_used_again(source: Path) -> None:
    assert all(len(part) >= 2 for part in divide([source]))


@pytest.mark.parametrize(
    ("current", "stage", "expected"),
    [(LIVE, "live", LIVE), (LIVE, "legacy", LIVE + 1), (LIVE + 1, "live", LIVE), (LIVE + 1, "legacy", LIVE + 1)],
)
def test_job_belongs_to_the_step_whose_stage_wrote_it(current: int, stage: str, expected: int) -> None:
    assert step_of(current, stage) == expected


def test_way_leads_through_every_stage_and_back_in_flight() -> None:
    stages = [step.stage for step in STEPS]

    assert set(stages) == set(Stage)
    assert [step.name for step in STEPS if step.in_flight] == ["rollback"]


def test_worker_is_spared_where_only_the_old_backend_has_the_jobs() -> None:
    spared = {step.stage for step in STEPS if "worker" not in step.chaos}

    assert spared == {Stage.LEGACY, Stage.SHADOW, Stage.PUSH}
