"""`python -m vlmhelpers`: see `vlmhelpers.cli`."""

import sys

from vlmhelpers.cli import Signals, main

if __name__ == "__main__":
    signals = Signals()
    code = main()
    signals.finish()
    sys.exit(code)
