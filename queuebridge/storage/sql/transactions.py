"""Act after the caller's own transaction has been committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

Target: TypeAlias = Connection | Session | scoped_session[Any]

# In the `info` of a session: what waits for its commit.
_PENDING = "queuebridge_on_commit"


def connection_of(target: Target) -> Connection:
    """Return the connection of the transaction that is meant."""
    return target if isinstance(target, Connection) else _session(target).connection()


def on_commit(target: Target, act: Callable[[], bool]) -> bool:
    """Have `act` called after the transaction of a session was committed, until it returns true.

    It is called after the release of a savepoint too, and returns false as long as what it waits for cannot be seen
    by others. It is never called once the session's outermost transaction has ended.

    Returns:
        False if the end of the transaction cannot be seen from here: SQLAlchemy tells of a connection's commit only
        before it happens.
    """
    if isinstance(target, Connection):
        return False
    session = _session(target)
    pending: list[Callable[[], bool]] | None = session.info.get(_PENDING)
    if pending is None:
        # For good: a listener cannot be removed while it is called, and a session may live as long as its program.
        pending = session.info[_PENDING] = []
        event.listen(session, "after_commit", _after_commit)
        event.listen(session, "after_transaction_end", _after_transaction_end)
    pending.append(act)
    return True


def _session(target: Session | scoped_session[Any]) -> Session:
    session: Session = target() if isinstance(target, scoped_session) else target
    return session


def _after_commit(session: Session) -> None:
    pending: list[Callable[[], bool]] = session.info[_PENDING]
    pending[:] = [act for act in pending if not act()]


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info[_PENDING].clear()
