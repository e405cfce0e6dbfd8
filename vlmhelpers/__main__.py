"""`python -m vlmhelpers`: see `vlmhelpers.cli`."""

import os
import sys
from contextlib import suppress

from vlmhelpers.common.signals import Signals


def open_standard_files() -> None:
    """Where a shell has closed one of them (`>&-`), the next file to be opened would be taken for it."""
    for number in range(3):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


if __name__ == "__main__":
    open_standard_files()
    signals = Signals()
    from vlmhelpers.cli import main  # half a second, in which Ctrl-C may come

    code = main(signals=signals)
    signals.finish()
    sys.exit(code)
