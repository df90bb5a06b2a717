"""Measuring on another machine, over ssh."""

from hwprune.remote.ssh import Destination, measure_there, parse_destination

__all__ = ["Destination", "measure_there", "parse_destination"]
