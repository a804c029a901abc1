"""The ledger: the shared store of jobs, dispatches, claims, deliveries and stage settings, as a port.

Implementations are in `queuebridge.storage`.
"""

from queuebridge.ledger.executions import ExecutionFilter, ExecutionLog
from queuebridge.ledger.port import Ledger
from queuebridge.ledger.records import (
    Busy,
    Claim,
    ClaimRequest,
    Copy,
    DeliveryOutcome,
    DeliveryRecord,
    DispatchFacts,
    Due,
    Execution,
    Granted,
    NewDispatch,
    Recorded,
    Settled,
    Settlement,
    ShadowNote,
    State,
    WriteMark,
    WriteState,
)
from queuebridge.ledger.stage_store import ProcessSeen, Revision, StageStore

__all__ = [
    "Busy",
    "Claim",
    "ClaimRequest",
    "Copy",
    "DeliveryOutcome",
    "DeliveryRecord",
    "DispatchFacts",
    "Due",
    "Execution",
    "ExecutionFilter",
    "ExecutionLog",
    "Granted",
    "Ledger",
    "NewDispatch",
    "ProcessSeen",
    "Recorded",
    "Revision",
    "Settled",
    "Settlement",
    "ShadowNote",
    "StageStore",
    "State",
    "WriteMark",
    "WriteState",
]
