"""The record of a run, and its renderings. Nothing here measures; it shows what the record says."""

from hwprune.report import record, render
from hwprune.report.record import Record, read

__all__ = ["Record", "read", "record", "render"]
