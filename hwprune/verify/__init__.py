"""Is the file what was promised? Measured on this host, without torch."""

from hwprune.verify.check import Made, check, compare_kernels, kernels_unavailable_reason
from hwprune.verify.host import cpu_name, environment, host_label
from hwprune.verify.latency import LatencyResult, measure
from hwprune.verify.limits import (
    Context,
    Limit,
    evaluate,
    explain,
    parse_limit,
    require_measurable,
    why_not,
)
from hwprune.verify.memory import MemoryResult, resident
from hwprune.verify.metric import metric_of
from hwprune.verify.outcome import SCOPE_HOST, SCOPE_UNLINKED, CheckResult, Step
from hwprune.verify.parity import Parity, compare

__all__ = [
    "SCOPE_HOST",
    "SCOPE_UNLINKED",
    "CheckResult",
    "Context",
    "LatencyResult",
    "Limit",
    "Made",
    "MemoryResult",
    "Parity",
    "Step",
    "check",
    "compare",
    "compare_kernels",
    "cpu_name",
    "environment",
    "evaluate",
    "explain",
    "host_label",
    "kernels_unavailable_reason",
    "measure",
    "metric_of",
    "parse_limit",
    "require_measurable",
    "resident",
    "why_not",
]
