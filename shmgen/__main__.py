"""``python -m shmgen``: the command line."""

import sys

from shmgen._tools.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m shmgen"))
