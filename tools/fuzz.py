"""Tries tests/fuzz with ever new examples until time is over or one fails, which is printed as code and kept.

A round tries so many examples of each test; a failure is tried first in the next call. Prints what was tried.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
_TEST = re.compile(r"^(tests/fuzz/\S+)::(\S+?)(?:\[.*)?:$")
_TRIED = re.compile(r"(\d+) passing, (\d+) failing,? and (\d+) invalid test cases")


def main() -> int:
    """The exit code of the first round that fails, else 0."""
    options = _arguments()
    end, seed, tried, code = time.monotonic() + 60 * options.minutes, options.seed, Counter(), 0
    while not code and (seed == options.seed or time.monotonic() < end):
        print(f"seed {seed}", flush=True)
        code, output = _round(seed, options)
        tried += _count(output)
        seed += 1
        if code:
            print(output)
    print(*(f"{count} {file}" for file, count in sorted(tried.items())), f"{tried.total()} examples tried", sep="\n")
    return code


def _arguments():
    parser = argparse.ArgumentParser("make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long new rounds are begun (default: 5)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round (default: the time)")
    parser.add_argument("--examples", type=int, default=500, help="of each test in a round (default: 500)")
    parser.add_argument("--only", default="", help="as pytest -k: csv, or a test's name")
    return parser.parse_args()


def _round(seed, options):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "tests/fuzz", "--hypothesis-show-statistics"]
    command += [f"--hypothesis-seed={seed}", *(["-k", options.only] if options.only else [])]
    environment = os.environ | {"VLMHELPERS_FUZZ": str(options.examples), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def _count(output):
    """Examples by file, of pytest's statistics."""
    found, file = Counter(), ""
    for line in output.splitlines():
        if test := _TEST.match(line):
            file = test[1]
        elif numbers := _TRIED.search(line):
            found[file] += sum(map(int, numbers.groups()[:2]))
    return found


if __name__ == "__main__":
    sys.exit(main())
