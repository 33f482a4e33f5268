"""The `rlhf` command's first moment: an interruption while its libraries load is one line, no traceback."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Load the command line and hand over to it."""
    try:
        from launch.cli import main as command_line
    except KeyboardInterrupt:
        print("interrupted before anything began", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    command_line()


if __name__ == "__main__":
    main()
