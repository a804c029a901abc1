"""The `queuebridge` command."""

from __future__ import annotations

import sys

from queuebridge.errors import MissingExtra
from queuebridge.loading import import_optional

EXIT_CONFIGURATION = 3


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        application = import_optional("queuebridge.cli.app", feature="The command line")
    except MissingExtra as error:
        sys.stderr.write(f"queuebridge: {error}\n")
        sys.exit(EXIT_CONFIGURATION)
    application.main()


if __name__ == "__main__":
    main()
