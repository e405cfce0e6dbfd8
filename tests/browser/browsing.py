"""JupyterLab and Chromium for the tests of the panel, and for its screenshots."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import requests

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 120  # for whatever has to appear: two cores may be busy with a training and another test
NO_CHROMIUM = "Chromium is not installed: the panel was not tried in a browser; apt-get install chromium"
NO_PLAYWRIGHT = "playwright is not installed: the panel was not tried in a browser; pip install playwright"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SETTINGS = {  # of JupyterLab: no questions, and no look at other hosts
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"autoStartDefaultKernel": True},
}


@contextmanager
def chromium():
    """A headless Chromium, as playwright's Browser. Raises FileNotFoundError or ImportError where one is missing."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        raise ImportError(NO_PLAYWRIGHT) from None
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if not program:
        raise FileNotFoundError(NO_CHROMIUM)
    expect.set_options(timeout=SECONDS * 1000)
    as_root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*as_root, "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser, url, **settings):
    """A page at `url`, in a profile of its own, that waits long for what is asked of it."""
    page = browser.new_page(
        **{
            "permissions": ["clipboard-read", "clipboard-write"],
            "viewport": {"width": 1200, "height": 1400},
            "locale": "en-US",
        }
        | settings
    )
    page.set_default_timeout(SECONDS * 1000)
    page.goto(url)
    return page


def ended(process, seconds=20):
    """Asks a process to end, and kills what is left of its group and of its children after that."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait(seconds)


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def environment(folder):
    """The environment of a Jupyter that keeps its own files in `folder`, and whose kernels import the project."""
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    calm = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # beside a browser, threads that wait must not spin
    return os.environ | places | calm | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


class Lab:
    """JupyterLab, serving `folder` until `close()`; its own files and its log lie in `place`."""

    def __init__(self, folder, place, **settings):
        self.folder, self.place = Path(folder), Path(place)
        self.port, self.token = free_port(), secrets.token_hex(16)
        self.log = self.place / "lab.log"
        for name, values in (_SETTINGS | settings).items():
            file = place / "config" / "lab" / "user-settings" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--ServerApp.port={self.port}", f"--IdentityProvider.token={self.token}"]
        command += [f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment(place), cwd=folder, start_new_session=True
            )
        self._wait()

    def _wait(self):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(requests.ConnectionError):
                requests.get(self.url("api"), timeout=10).raise_for_status()
                return
            time.sleep(0.2)
        self.close()
        raise RuntimeError(f"JupyterLab did not start: {self.log.read_text()[-2000:]}")

    def url(self, path):
        """The address of a path, with the token."""
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}"

    def write(self, name, *cells):
        """Saves a notebook of code cells under this name."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / name)

    def open(self, browser, name, **settings):
        """The `Notebook` of this name in a page of its own, its kernel at rest."""
        notebook = Notebook(self, name, open_page(browser, self.url(f"doc/tree/{name}"), **settings))
        notebook.wait_until_ready()
        return notebook

    def close(self):
        """Ends JupyterLab and its kernels."""
        ended(self.process)


class Notebook:
    """A notebook that is open in a page of JupyterLab."""

    def __init__(self, lab, name, page):
        self.lab, self.name, self.page = lab, name, page

    def wait_until_ready(self):
        """Waits for the cells, and for a kernel that the page is connected to and that is at rest."""
        self.page.locator(".jp-CodeCell").first.wait_for()
        if not self._within(SECONDS, self._is_ready):
            raise TimeoutError(f"no kernel for {self.name}")
        self.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first.wait_for()

    def _is_ready(self):
        sessions = requests.get(self.lab.url("api/sessions"), timeout=SECONDS).json()
        kernels = [session["kernel"] for session in sessions if session["path"] == self.name]
        return any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels)

    def cell(self, index):
        """The code cell of this number, from 0."""
        return self.page.locator(".jp-CodeCell").nth(index)

    def prompt(self, index):
        """What stands before a cell: "[ ]:", "[*]:" while it runs, "[3]:" afterwards."""
        return self.cell(index).locator(".jp-InputPrompt").inner_text().strip()

    def output(self, index):
        """The text under a cell."""
        return self.cell(index).locator(".jp-Cell-outputArea").inner_text().strip()

    def run(self, index):
        """Runs a cell as a reader does, and waits until it is done."""
        before = self.prompt(index)
        for _ in range(5):  # what is typed before the kernel is connected is lost
            self.cell(index).locator(".cm-content").click(position={"x": 2, "y": 2})
            self.page.keyboard.press("Control+Enter")
            if self._within(10, lambda: self.prompt(index) != before):
                if self._within(SECONDS, lambda: self.prompt(index) != "[*]:") and self.prompt(index) != "[ ]:":
                    return
        raise TimeoutError(f"cell {index} is still {self.prompt(index)}")

    def paste(self, index):
        """Pastes what was copied into a cell."""
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+v")

    def _within(self, seconds, condition):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            self.page.wait_for_timeout(100)
        return False

    def save(self):
        """Saves the notebook, with the outputs as they are, and waits for the file."""
        file = self.lab.folder / self.name
        before = file.stat().st_mtime_ns
        self.page.locator('[data-command="docmanager:save"]').first.click()
        if not self._within(SECONDS, lambda: file.stat().st_mtime_ns != before):
            raise TimeoutError(f"{file} was not saved")

    def reload(self):
        """Loads the page anew; the kernel stays."""
        self.page.reload()
        self.wait_until_ready()

    def restart(self):
        """Restarts the kernel."""
        self.page.locator('[data-command="notebook:restart-kernel"]').first.click()
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")
        self.wait_until_ready()
