"""``python -m imgcache``."""

import sys


def run() -> None:
    """Run the command line and exit with its code."""
    from imgcache.cli import main  # noqa: PLC0415 - `--help` pays for nothing it does not use

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
