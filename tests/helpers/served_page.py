"""The panel as a served page, in a process of its own."""

import os
import re
import signal
import subprocess
import sys


class ServedPage:
    """What `python -m vlmhelpers studio` serves: `url`, `token` and `port`, until `end()`."""

    def __init__(self, cwd, *arguments, **environment):
        """`arguments`: those of the command, `environment`: variables for it."""
        command = [sys.executable, "-m", "vlmhelpers", "studio", *map(str, arguments), "--no-browser"]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, cwd=cwd, env=os.environ | environment, **quiet)
        said = self.process.stdout.readline()
        self.url, self.port, self.token = re.search(r"(http://127\.0\.0\.1:(\d+)/)\?token=(\S+)", said).groups()
        self.port = int(self.port)

    def end(self, number=signal.SIGTERM):
        """Ends it with a signal, and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)
