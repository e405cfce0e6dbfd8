"""The jobs of one root: each is a run in a folder of its own, and a file that says which folder that is."""

import json
import re
import shutil
import threading
import time
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vlmhelpers.common.files import atomic_file, remove_abandoned, temporary_name
from vlmhelpers.common.settings import shown
from vlmhelpers.service.places import Root
from vlmhelpers.service.request import JobRequest, UnusableRequest, as_config
from vlmhelpers.training.background import CONFIG, TrainingRun

REGISTRY = ".vlmhelpers-jobs"  # in the root; a file for each job
FOLDER = "jobs"  # of the runs whose output_dir nobody has chosen
MOST_GOING_ON, MOST_KEPT = 32, 1000


class TooManyJobs(Exception):
    """No more jobs are taken now."""


@dataclass(frozen=True)
class Job:
    """A run by the name that a client gave it. `created`: seconds since 1970."""

    id: str
    name: str
    run: TrainingRun
    created: float

    @property
    def state(self) -> str:
        """That of the run, or removed where its folder is no longer there."""
        return self.run.state if self.run.folder.is_dir() else "removed"

    @property
    def error(self) -> str | None:
        """What the run failed with, or that its folder is gone."""
        return self.run.error if self.run.folder.is_dir() else f"{self.run.folder} is not there"


class Jobs:
    """All jobs under a root, those of earlier servers included. Several threads may use it."""

    def __init__(self, root: Root, at_once: int = 1):
        """`at_once`: jobs that train together; the others wait. Raises ValueError where it is below 1."""
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}: at least one job trains")
        self.root, self.at_once = root, at_once
        self.registry = root.folder / REGISTRY
        self._changing, self._jobs = threading.Lock(), {}
        for file in sorted(self.registry.glob("*.json")):
            with suppress(ValueError, OSError, KeyError, TypeError):  # not written by `_add`
                self._jobs[file.stem] = self._read(file)

    def _read(self, file):
        kept = json.loads(file.read_bytes())
        folder = self.root.path("folder", kept["folder"])
        return Job(file.stem, str(kept["name"]), TrainingRun(folder), float(kept["created"]))

    def all(self) -> list[Job]:
        """Every job, the newest first."""
        jobs = list(self._jobs.values())  # at once, as other threads add some
        return sorted(jobs, key=lambda job: job.created, reverse=True)

    def find(self, job_id: str) -> Job | None:
        """The job of that id, if there is one."""
        return self._jobs.get(job_id)

    def create(self, request: JobRequest) -> Job:
        """Starts a job, or lets it wait for its turn.

        Raises UnusableRequest, FileExistsError where its name or its folder is taken, and TooManyJobs.
        """
        job_id = make_id(request.name)
        config = as_config(request, self.root, request.output_dir or f"{FOLDER}/{job_id}")
        with self._changing:
            before = self._going_on()
            self._refuse_too_many(before)
            folder = Path(config.output_dir)
            self._refuse_taken(job_id, folder)
            folder.mkdir(parents=True, exist_ok=True)
            config.save(folder / CONFIG)  # before the job is there: it can be started from now on
            job = self._add(job_id, request.name, folder)
            job.run.start(config, after=before, at_once=self.at_once)
        return job

    def resume(self, job: Job, accept_changes: bool = False) -> None:
        """Goes on with a job that has ended, in its turn. Raises what `TrainingRun.start` raises, and TooManyJobs."""
        with self._changing:
            if job.state == "removed":
                raise FileNotFoundError(f"{job.error}: delete the job")
            before = self._going_on()
            if len(before) >= MOST_GOING_ON:
                raise TooManyJobs(f"{len(before)} jobs go on or wait: try again when one has ended")
            job.run.start(accept_changes=accept_changes, after=before, at_once=self.at_once)

    def delete(self, job: Job) -> None:
        """Removes a job and its run's folder. Raises BlockingIOError while it goes on, and OSError."""
        with self._changing:
            if job.run.is_running:
                raise BlockingIOError(f"{job.id} is {job.state}: stop it first")
            self._remove(job.run.folder)
            (self.registry / f"{job.id}.json").unlink(missing_ok=True)
            self._jobs.pop(job.id, None)

    def _remove(self, folder):
        """Removes a run's folder, and nothing that a link in its place would lead to."""
        if folder.resolve() != folder:
            raise PermissionError(f"{folder} has become a link: remove it by hand")
        remove_abandoned(folder.parent, folder.name)
        if folder.exists():
            away = folder.rename(folder.with_name(temporary_name(folder.name)))
            shutil.rmtree(away)

    def _going_on(self):
        """The folders of the runs that train or wait."""
        return [job.run.folder for job in self._jobs.values() if job.run.is_running]

    def _refuse_too_many(self, going_on):
        if len(going_on) >= MOST_GOING_ON:
            raise TooManyJobs(f"{len(going_on)} jobs go on or wait: try again when one has ended")
        if len(self._jobs) >= MOST_KEPT:
            raise TooManyJobs(f"{len(self._jobs)} jobs are kept: delete some")

    def _refuse_taken(self, job_id, folder):
        if job_id in self._jobs:
            raise FileExistsError(f"there is a job {job_id!r}: choose another name, or delete it")
        place = self.root.relative(folder)
        if folder in (self.root.folder, self.registry) or folder.is_relative_to(self.registry):
            raise UnusableRequest({"output_dir": f"output_dir is {shown(place)}: choose a folder of its own"})
        others = [job for job in self._jobs.values() if _overlap(job.run.folder, folder)]
        if others:
            raise FileExistsError(f"output_dir is {shown(place)}: the job {others[0].id!r} has it; choose another")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"output_dir is {shown(place)}: it is not empty; choose a new folder")

    def _add(self, job_id, name, folder):
        job = Job(job_id, name, TrainingRun(folder), time.time())
        kept = {"name": name, "folder": self.root.relative(folder), "created": job.created}
        with atomic_file(self.registry / f"{job_id}.json", encoding="utf-8") as file:
            json.dump(kept, file)
        self._jobs[job_id] = job
        return job


def make_id(name: str) -> str:
    """A job's id: its name as a folder may be called. Raises UnusableRequest for a name of which nothing is left."""
    found = re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFKC", name)).strip(".-")
    if not found or len(found.encode()) > 128:
        raise UnusableRequest({"name": f"name is {shown(name)}: choose a shorter one of letters and digits"})
    return found


def _overlap(one, other):
    return one.is_relative_to(other) or other.is_relative_to(one)
