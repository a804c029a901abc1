"""Rules about the message: serializer, compression, arguments."""

from __future__ import annotations

from collections.abc import Iterator

from queuebridge.backends.celery.inventory.facts import AppFacts
from queuebridge.backends.celery.inventory.records import Place, Severity
from queuebridge.backends.celery.inventory.rules.table import Hit, RuleTable, TaskSubject

TABLE: RuleTable[TaskSubject] = RuleTable()

_CONTENT_TYPES = {
    "json": "application/json",
    "pickle": "application/x-python-serialize",
    "yaml": "application/x-yaml",
    "msgpack": "application/x-msgpack",
}
_JSON = ("json", "application/json")


def _others(subject: TaskSubject, *, accepted: bool) -> Iterator[tuple[str, str, tuple[Place, ...]]]:
    """Yield each serializer other than JSON, with where it is chosen."""
    for value, said, where in subject.option("serializer"):
        if value not in _JSON and _accepts(subject.app, str(value)) is accepted:
            yield str(value), said, where


def _accepts(app: AppFacts, serializer: str) -> bool:
    return bool({serializer, _CONTENT_TYPES.get(serializer, serializer)} & set(app.accept_content))


@TABLE.add(
    "serializer-refused",
    Severity.BLOCKER,
    why="A worker refuses such messages today already. The bridge refuses to send them: no executor could read them.",
    do="Use the json serializer, or add this one to accept_content in workers and receivers.",
)
def serializer_refused(subject: TaskSubject) -> Iterator[Hit]:
    """Find serializers that the app does not accept."""
    for _, said, where in _others(subject, accepted=False):
        yield Hit(f"{said}, which accept_content does not have", where)


@TABLE.add(
    "serializer-needs-key",
    Severity.EDIT,
    why="Nobody can see whether such arguments hold secrets, so the ledger stores them sealed only, and there is no "
    "key.",
    do="Set QUEUEBRIDGE_LEDGER_KEY (`queuebridge ledger key`) in all processes, or use the json serializer.",
)
def serializer_needs_key(subject: TaskSubject) -> Iterator[Hit]:
    """Find accepted serializers that need a key of the ledger."""
    if not subject.surroundings.ledger_key:
        for _, said, where in _others(subject, accepted=True):
            yield Hit(said, where)


@TABLE.add(
    "serializer-not-json",
    Severity.NOTE,
    why="The message travels as it is. The ledger cannot show its arguments, and pickle runs code when it is read.",
    do="Nothing for the move. The json serializer is safer, and lets reports compare arguments.",
)
def serializer_not_json(subject: TaskSubject) -> Iterator[Hit]:
    """Find accepted serializers other than JSON."""
    if subject.surroundings.ledger_key:
        for _, said, where in _others(subject, accepted=True):
            yield Hit(said, where)


@TABLE.add(
    "arguments-not-json",
    Severity.DECISION,
    why="The json serializer cannot write such values, and the same holds for push messages.",
    do="Pass an id or plain values and load the object in the task; or pydantic=True for models (Celery 5.5).",
)
def arguments_not_json(subject: TaskSubject) -> Iterator[Hit]:
    """Find arguments that are not JSON, where JSON is used."""
    if not _only_json(subject):
        return
    for parameter in subject.parameters:
        if parameter.json is False and not (parameter.model and subject.task.pydantic):
            yield Hit(f"parameter {parameter.name}: {parameter.annotation}", subject.places)
    if not subject.task.pydantic:
        for place, what in subject.bad_arguments:
            yield Hit(f"an argument {what}" if what.startswith("of") else f"{what} as an argument", (place,))


@TABLE.add(
    "arguments-need-pickle",
    Severity.NOTE,
    why="These values are why this task cannot simply be switched to the json serializer.",
    do="To leave pickle behind, pass ids or plain values.",
)
def arguments_need_pickle(subject: TaskSubject) -> Iterator[Hit]:
    """Find arguments that are not JSON, where another serializer is used."""
    if _only_json(subject):
        return
    for parameter in subject.parameters:
        if parameter.json is False:
            yield Hit(f"parameter {parameter.name}: {parameter.annotation}", subject.places)
    for place, what in subject.bad_arguments:
        yield Hit(f"an argument {what}" if what.startswith("of") else f"{what} as an argument", (place,))


def _only_json(subject: TaskSubject) -> bool:
    return all(value in _JSON for value, _, _ in subject.option("serializer"))


@TABLE.add(
    "compression-needs-key",
    Severity.EDIT,
    why="A compressed body cannot be looked into, so the ledger stores it sealed only, and there is no key.",
    do="Drop the compression (long arguments travel by reference), or set QUEUEBRIDGE_LEDGER_KEY in all processes.",
)
def compression_needs_key(subject: TaskSubject) -> Iterator[Hit]:
    """Find compression without a key of the ledger."""
    if not subject.surroundings.ledger_key:
        for value, said, where in subject.option("compression"):
            if value:
                yield Hit(said, where)


@TABLE.add(
    "compression",
    Severity.NOTE,
    why="The message travels as it is, compressed. The ledger cannot show its arguments.",
    do="Nothing for the move.",
)
def compression(subject: TaskSubject) -> Iterator[Hit]:
    """Find compression."""
    if subject.surroundings.ledger_key:
        for value, said, where in subject.option("compression"):
            if value:
                yield Hit(said, where)


@TABLE.add(
    "large-arguments",
    Severity.NOTE,
    why="They may not fit into a push message; the ledger keeps them, and a reference travels.",
    do="Nothing while there is a ledger. Passing a reference yourself spares it the weight.",
)
def large_arguments(subject: TaskSubject) -> Iterator[Hit]:
    """Find arguments that the ledger has seen to be large."""
    seen = subject.seen
    if seen is not None and seen.cut:
        yield Hit("arguments of more than 10000 characters were seen; the ledger does not show how much more")
    elif seen is not None and (seen.largest_bytes or 0) > subject.surroundings.push_max_bytes:
        yield Hit(f"arguments of {seen.largest_bytes} bytes were seen")


@TABLE.add(
    "options-unseen",
    Severity.NOTE,
    why="Options that are put together elsewhere may contain one that push does not honour.",
    do="Look whether priority, exchange, routing_key, serializer or compression can be among them.",
)
def options_unseen(subject: TaskSubject) -> Iterator[Hit]:
    """Find calls with options that are not written there."""
    for call in subject.calls:
        if "**" in call.options:
            yield Hit(f"{call.options['**'].text} at a call", (call.place,))
