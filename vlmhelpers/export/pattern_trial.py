"""Regular expressions of others, matched with names in a process that has limits: some take for ever."""

import json
import re
import sys
from pathlib import Path

from vlmhelpers.common.processes import limit_resources


def _main(file):
    patterns, names = json.loads(Path(file).read_text(encoding="utf-8"))
    limit_resources(seconds=3, gibibytes=1)
    try:
        for pattern in map(re.compile, patterns):
            for name in names:
                pattern.match(name)
    except re.error as error:
        print(f"a pattern of modules that is none ({error})")
    except (MemoryError, RecursionError):
        sys.exit(1)


if __name__ == "__main__":
    _main(sys.argv[1])
