"""Measuring on another machine, over ssh."""

from hwprune.remote.ssh import THIS_MACHINE, Destination, measure_there, parse_destination

__all__ = ["THIS_MACHINE", "Destination", "measure_there", "parse_destination"]
