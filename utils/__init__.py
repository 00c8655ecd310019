import sys

if sys.version_info < (3, 10):  # noqa: UP036  (any interpreter may import this file)
    sys.stderr.write(f"error: Python {sys.version.split()[0]} is too old: 3.10 or later is required\n")
    sys.exit(2)
