"""`python -m vlmhelpers`: see `vlmhelpers.cli`."""

import sys

from vlmhelpers.cli import main

if __name__ == "__main__":
    sys.exit(main())
