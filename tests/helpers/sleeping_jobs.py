"""Jobs without a training: their runs are processes that sleep. And a server of them in a thread."""

import json
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import requests
from job_server import JOBS

from vlmhelpers.service import server
from vlmhelpers.service.jobs import REGISTRY, Jobs
from vlmhelpers.service.places import Root
from vlmhelpers.training.progress import describe_process, write_process

TOKEN = "a-token-of-the-tests"


def add_job(root, job_id, process=None, lines=(), **more):
    """A job as an earlier server has left it, whose run is that process, has said those lines, and has ended if any."""
    folder = root / "runs" / job_id
    folder.mkdir(parents=True)
    (root / REGISTRY).mkdir(exist_ok=True)
    kept = {"name": job_id, "folder": f"runs/{job_id}", "created": time.time()}
    (root / REGISTRY / f"{job_id}.json").write_text(json.dumps(kept))
    (folder / "progress.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if process:
        write_process(folder, describe_process(process.pid, started=time.time(), own=True) | more)
    return folder


@contextmanager
def serving(root, token=TOKEN):
    """`url`, `port`, `jobs` and `ask(method, path)` of a server in a thread."""
    jobs = Jobs(Root(root))
    listening = server._listen("127.0.0.1", 0)
    found = server._server(jobs, token, ["jobs.example"])
    thread = threading.Thread(target=found.run, args=([listening],))
    thread.start()
    port = listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}"

    def ask(method, path="", **options):
        headers = {"Authorization": f"Bearer {token}"} | options.pop("headers", {})
        return requests.request(method, url + JOBS + path, headers=headers, timeout=60, **options)

    try:
        yield SimpleNamespace(url=url, port=port, jobs=jobs, ask=ask, server=found)
    finally:
        found.should_exit = True
        thread.join(30)
        listening.close()
