"""The job interface as a served program, in a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import requests

JOBS = "/api/v1/training/jobs"


def free_port():
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


class JobServer:
    """What `python -m vlmhelpers serve` serves for `root`: `url`, `port` and `token`, until `end()`."""

    def __init__(self, root, *arguments, port=None, **environment):
        """`arguments`: those of the command, `environment`: variables for it."""
        self.root, self.port = root, port or free_port()
        command = [sys.executable, "-m", "vlmhelpers", "serve", "--root", str(root), "--port", str(self.port)]
        self.log = open(root / "server.log", "ab")  # noqa: SIM115 (closed by `end`)
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=root,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.said = [self.process.stdout.readline()]
        while self.said[-1] and "Ctrl-C" not in self.said[-1]:
            self.said.append(self.process.stdout.readline())
        found = re.search(r"Token: (\S+)", "".join(self.said))
        self.token = found[1] if found else environment.get("VLMHELPERS_TOKEN")
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {self.token}"

    def ask(self, method, path="", **options):
        """The answer to a request with the token, for an address below that of the jobs."""
        return self.session.request(method, self.url + JOBS + path, timeout=60, **options)

    def get(self, path="", **options):
        return self.ask("GET", path, **options)

    def post(self, path="", **options):
        return self.ask("POST", path, **options)

    def wait(self, job, *states, seconds=240):
        """The job once it is in one of the states."""
        end = time.monotonic() + seconds
        while (found := self.get(f"/{job}").json())["state"] not in states:
            assert time.monotonic() < end and found["state"] not in ("failed", "lost"), found
            time.sleep(0.1)
        return found

    def end(self, number=signal.SIGTERM):
        """Ends it with a signal, and returns its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        self.log.close()
        return code
