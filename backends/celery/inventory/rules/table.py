"""What a rule is, and what it looks at.

To add one: write a function that yields a `Hit` for each thing found, put the decorator of the file's table above it
with a name, a severity, why it matters and what to do, and add a case to tests/unit/backends/test_inventory_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from queuebridge.backends.celery.inventory.facts import AppFacts, ScheduleFacts, Seen, Surroundings, TaskFacts
from queuebridge.backends.celery.inventory.records import Finding, Place, Severity
from queuebridge.backends.celery.inventory.source.annotations import Parameter
from queuebridge.backends.celery.inventory.source.bodies import Use
from queuebridge.backends.celery.inventory.source.calls import Call
from queuebridge.backends.celery.inventory.source.files import Unread

_PLACES = 20


@dataclass(frozen=True, kw_only=True)
class TaskSubject:
    """A task with everything that is known of it.

    Attributes:
        task, app, surroundings: Facts.
        parameters: Its parameters.
        bad_arguments: Places of calls with arguments that are not JSON, and what these are.
        calls: Where it is called.
        inner_calls: Calls of tasks that its own body makes.
        uses: What its body uses.
        schedules: The entries of beat that publish it.
        seen: What the ledger has seen of it; None if nothing.
    """

    task: TaskFacts
    app: AppFacts
    surroundings: Surroundings = field(default_factory=Surroundings)
    parameters: Sequence[Parameter] = ()
    bad_arguments: Sequence[tuple[Place, str]] = ()
    calls: Sequence[Call] = ()
    inner_calls: Sequence[Call] = ()
    uses: Sequence[Use] = ()
    schedules: Sequence[ScheduleFacts] = ()
    seen: Seen | None = None

    def option(self, name: str) -> Iterator[tuple[Any, str, tuple[Place, ...]]]:
        """Yield the values of an option: on the task, in its route, in calls and schedules.

        Each comes with where it was said, in words and as places. A value that cannot be told is its text.
        """
        own = self.task.options.get(name)
        if own is not None:
            yield own, f"{name}={own!r} on the task, or for all by the app", self.places
        routed = self.task.route.get(name)
        if routed is not None:
            yield routed, f"{name}={routed!r} by task_routes", ()
        for schedule in self.schedules:
            if schedule.options.get(name) is not None:
                yield schedule.options[name], f"{name}={schedule.options[name]!r} in beat's {schedule.name!r}", ()
        for call in self.calls:
            value = call.options.get(name)
            if value is not None and not (value.known and value.value is None):
                yield (value.value if value.known else value.text), f"{name}={value.text} at a call", (call.place,)

    @property
    def places(self) -> tuple[Place, ...]:
        """Return where the task is defined."""
        return (self.task.place,) if self.task.place is not None else ()

    def used(self, *kinds: str) -> list[Use]:
        """Return what the body uses of some kinds."""
        return [use for use in self.uses if use.kind in kinds]


@dataclass(frozen=True, kw_only=True)
class AppSubject:
    """An app with everything that is known of it.

    Attributes:
        app: Facts.
        task_names: The names of its tasks.
        uses: What modules do with it.
        unresolved: Calls of which nobody can say what they call.
        unread: Files that could not be read.
        not_loaded: Functions that are declared as tasks in the source, and that the app has not loaded.
    """

    app: AppFacts
    task_names: frozenset[str] = frozenset()
    uses: Sequence[Use] = ()
    unresolved: Sequence[Call] = ()
    unread: Sequence[Unread] = ()
    not_loaded: Sequence[tuple[str, Place]] = ()

    def used(self, *kinds: str) -> list[Use]:
        """Return what modules do of some kinds."""
        return [use for use in self.uses if use.kind in kinds]


Subject = TypeVar("Subject", TaskSubject, AppSubject)


@dataclass(frozen=True, slots=True)
class Hit:
    """Something that a rule has found: what, and where."""

    what: str
    where: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule(Generic[Subject]):
    """One rule.

    Attributes:
        name: Its name, in output and documentation.
        severity: How much a finding stands in the way.
        why: Why it matters.
        do: What to do about it.
        find: Yields what it finds.
    """

    name: str
    severity: Severity
    why: str
    do: str
    find: Callable[[Subject], Iterator[Hit]]

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """Yield its findings. Several of the same become one with all their places."""
        places: dict[str, list[Place]] = {}
        for hit in self.find(subject):
            places.setdefault(hit.what, []).extend(hit.where)
        for what, where in places.items():
            yield Finding(
                rule=self.name,
                severity=self.severity,
                what=what,
                where=tuple(sorted(set(where)))[:_PLACES],
                why=self.why,
                do=self.do,
            )


class RuleTable(Generic[Subject]):
    """The rules of one file, in order.

    Attributes:
        rules: The rules.
    """

    def __init__(self) -> None:
        self.rules: list[Rule[Subject]] = []

    def add(
        self, name: str, severity: Severity, *, why: str, do: str
    ) -> Callable[[Callable[[Subject], Iterator[Hit]]], Callable[[Subject], Iterator[Hit]]]:
        """Put the decorated function into the table."""

        def register(find: Callable[[Subject], Iterator[Hit]]) -> Callable[[Subject], Iterator[Hit]]:
            self.rules.append(Rule(name, severity, why, do, find))
            return find

        return register


def together(uses: Iterable[Use]) -> Iterator[Hit]:
    """Yield one hit for each thing used, with all its places."""
    for use in uses:
        yield Hit(use.detail, (use.place,))


def seconds(number: float) -> str:
    """Return a length of time for people."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if number >= 2 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} s"
