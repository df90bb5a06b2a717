"""``hwprune.Pruner`` in other trainers; each file needs the library that it is named for."""
