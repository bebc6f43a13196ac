"""Set up a capture store in PostgreSQL as its owner: ``python -m mlschool_dagster.capture``.

The tables are made or brought up to date in the store that MLSCHOOL_CAPTURE_STORE names, and the
role of an endpoint gets the rights that it needs, of which deleting is none.
"""

import argparse
import os
import sys

from mlschool_dagster.capture.postgres import PostgresStore
from mlschool_dagster.credentials import scrub_logs_and_tracebacks
from mlschool_dagster.errors import UserError

_STORE = "MLSCHOOL_CAPTURE_STORE"


def main() -> int:
    """Do it once; returns the exit code."""
    scrub_logs_and_tracebacks()
    parser = argparse.ArgumentParser(
        prog="python -m mlschool_dagster.capture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--writer", required=True, help="role of PostgreSQL that will add captures")
    writer = parser.parse_args().writer
    try:
        uri = os.environ.get(_STORE, "")
        if not uri.startswith(("postgresql://", "postgres://")):
            raise UserError(
                f"{_STORE} names no database of PostgreSQL; set it to "
                "postgresql://user:password@host:port/database, with the owner as the user."
            )
        store = PostgresStore(uri)
        store.admit_writer(writer)
        store.close()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
