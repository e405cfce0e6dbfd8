"""Jobs are kept in the root, each with a folder of its own, and are removed with nothing else."""

import json

import pytest
from sleeping_jobs import add_job

from vlmhelpers.service import jobs as module
from vlmhelpers.service.jobs import REGISTRY, Jobs, TooManyJobs, make_id
from vlmhelpers.service.places import Root
from vlmhelpers.service.request import JobRequest, UnusableRequest
from vlmhelpers.training.background import TrainingRun


@pytest.fixture
def started(monkeypatch):
    """Runs are not started; what they would have been started with is kept."""
    found = []
    monkeypatch.setattr(TrainingRun, "start", lambda self, *given, **named: found.append((self.folder, given, named)))
    return found


@pytest.fixture
def root(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    return Root(tmp_path)


def request(name="one", **more):
    return JobRequest(name=name, base_model="org/model", dataset_path="rows.jsonl", **more)


@pytest.mark.parametrize(
    "name, job_id",
    [
        ("vision-model-1", "vision-model-1"),
        ("../../etc/passwd", "etc-passwd"),
        ("a b\n$(rm -rf ~); c", "a-b-rm-rf-c"),
        ("Mémoire 模型", "Mémoire-模型"),
        (".hidden", "hidden"),
        ("C:\\x", "C-x"),
    ],
)
def test_a_name_becomes_the_name_of_a_folder(name, job_id):
    assert make_id(name) == job_id


@pytest.mark.parametrize("name", ["..", "/", "🙂", "-.-", "模" * 64])
def test_a_name_of_which_nothing_is_left_is_refused(name):
    with pytest.raises(UnusableRequest, match="^name is "):
        make_id(name)


def test_a_job_is_found_again(root, started):
    made = Jobs(root).create(request("my job"))
    (found,) = Jobs(root).all()
    assert (found.id, found.name, found.created) == ("my-job", "my job", made.created)
    assert found.run.folder == root.folder / "jobs" / "my-job" == started[0][0]
    assert (found.run.folder / "run.yaml").is_file() and found.state == "new"  # so resume starts it


def test_jobs_wait_for_those_that_go_on(root, started, sleeper):
    add_job(root.folder, "ended", sleeper, end="finished")
    going_on = [add_job(root.folder, name, sleeper) for name in ("a", "b")]
    Jobs(root, at_once=2).create(request())
    assert started[0][2] == {"after": going_on, "at_once": 2}
    with pytest.raises(ValueError, match="at_once is 0"):
        Jobs(root, at_once=0)


def test_a_name_and_a_folder_are_taken_once(root, started):
    jobs = Jobs(root)
    jobs.create(request(output_dir="models/one"))
    with pytest.raises(FileExistsError, match="a job 'one'"):
        jobs.create(request("one!", output_dir="models/two"))
    for folder in ("models/one", "models", "models/one/below"):
        with pytest.raises(FileExistsError, match="'one' has it"):
            jobs.create(request("two", output_dir=folder))
    for folder in (".", REGISTRY, f"{REGISTRY}/x"):
        with pytest.raises((UnusableRequest, FileExistsError)):
            jobs.create(request("two", output_dir=folder))
    (root.folder / "full").mkdir()
    (root.folder / "full" / "thesis.tex").write_text("mine")
    for folder in ("full", "rows.jsonl"):
        with pytest.raises(FileExistsError, match="not empty"):
            jobs.create(request("two", output_dir=folder))
    assert [job.id for job in jobs.all()] == ["one"]


def test_no_more_jobs_than_are_bounded(root, started, sleeper, monkeypatch):
    monkeypatch.setattr(module, "MOST_GOING_ON", 1)
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    jobs = Jobs(root)
    for name in ("one", "two"):
        jobs.create(request(name))
    with pytest.raises(TooManyJobs, match="2 jobs are kept"):
        jobs.create(request("three"))
    add_job(root.folder, "busy", sleeper)
    jobs = Jobs(root)
    with pytest.raises(TooManyJobs, match="1 jobs go on"):
        jobs.create(request("three"))
    with pytest.raises(TooManyJobs, match="1 jobs go on"):
        jobs.resume(jobs.find("one"))
    assert len(started) == 2


def test_only_its_own_folder_is_removed(root, started, sleeper, tmp_path_factory):
    others = tmp_path_factory.mktemp("others")
    (others / "file").write_text("mine")
    folder = add_job(root.folder, "one", sleeper, end="finished")
    (folder / "link").symlink_to(others)
    add_job(root.folder, "two", sleeper)
    jobs = Jobs(root)
    with pytest.raises(BlockingIOError, match="two is starting: stop it first"):
        jobs.delete(jobs.find("two"))
    jobs.delete(jobs.find("one"))
    assert sorted(path.name for path in (root.folder / "runs").iterdir()) == ["two"]
    assert (others / "file").read_text() == "mine"
    assert [job.id for job in jobs.all()] == [job.id for job in Jobs(root).all()] == ["two"]


def test_a_link_in_the_place_of_a_folder_is_left(root, sleeper, tmp_path_factory):
    folder = add_job(root.folder, "one", sleeper, end="finished")
    jobs = Jobs(root)
    others = folder.rename(tmp_path_factory.mktemp("others") / "one")
    folder.symlink_to(others)
    with pytest.raises(PermissionError, match="has become a link"):
        jobs.delete(jobs.find("one"))
    assert (others / "progress.jsonl").is_file()


def test_a_job_whose_folder_is_gone_is_removed(root, sleeper):
    folder = add_job(root.folder, "one", sleeper, end="finished")
    jobs = Jobs(root)
    folder.rename(root.folder / "elsewhere")
    job = jobs.find("one")
    assert job.state == "removed" and "is not there" in job.error
    with pytest.raises(FileNotFoundError, match="delete the job"):
        jobs.resume(job)
    jobs.delete(job)
    assert jobs.all() == []


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"name": "x", "folder": "../../etc", "created": 1}', '{"name": 1'])
def test_what_is_no_job_is_passed_over(root, kept):
    (root.folder / REGISTRY).mkdir()
    (root.folder / REGISTRY / "x.json").write_text(kept)
    assert Jobs(root).all() == []


def test_a_failed_start_can_be_tried_again(root, monkeypatch):
    def fail(*given, **named):
        raise OSError("no process is left")

    monkeypatch.setattr(TrainingRun, "start", fail)
    with pytest.raises(OSError, match="no process"):
        Jobs(root).create(request())
    (job,) = Jobs(root).all()
    assert job.state == "new" and json.loads((root.folder / REGISTRY / "one.json").read_text())["folder"] == "jobs/one"
