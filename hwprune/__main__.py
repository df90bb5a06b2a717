"""``python -m hwprune``: the command line."""

import sys

from hwprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
