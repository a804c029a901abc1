"""What the ledger knows, for people: reports on the stages, evidence for the next one, statistics of tasks."""

from queuebridge.reporting.evidence import DEFAULT_THRESHOLDS, Thresholds, Verdict, judge, judge_advance
from queuebridge.reporting.percentiles import Percentiles
from queuebridge.reporting.records import ShadowReport, SideReport, StageReport
from queuebridge.reporting.report import build_report
from queuebridge.reporting.statistics import TaskStatistics, task_statistics

__all__ = [
    "DEFAULT_THRESHOLDS",
    "Percentiles",
    "ShadowReport",
    "SideReport",
    "StageReport",
    "TaskStatistics",
    "Thresholds",
    "Verdict",
    "build_report",
    "judge",
    "judge_advance",
    "task_statistics",
]
