"""The contract tasks in the registry that workers use: `QUEUEBRIDGE_TASKS=contract_worker`."""

from contract_tasks import declare

from queuebridge.registry import default_registry

declare(default_registry)
