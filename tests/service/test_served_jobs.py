"""Jobs by HTTP, trained to their end: guide 001's own call, kills of the server, the queue, events, stop and resume."""

import json
import shutil
import signal
import socket
import time

import psutil
import pytest
import requests
from job_server import JOBS, JobServer, free_port

from vlmhelpers.cli import main
from vlmhelpers.families import tiny_model
from vlmhelpers.training.progress import read_process

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-tests"
# As it stands in the guide.
GUIDE = """
import requests

response = requests.post('http://localhost:8000/api/v1/training/jobs', json={
    "name": "vision-model-1",
    "base_model": "Qwen/Qwen2.5-VL-3B-Instruct",
    "dataset_path": "./data/vision_dataset.jsonl",
    "output_dir": "./models/vision-model-1",
    "model_type": "vision-language",  # New field
    "hyperparameters": {
        "learning_rate": 2e-5,
        "num_epochs": 3,
        "batch_size": 1,
        "gradient_accumulation_steps": 8
    }
})
"""


def port_of_the_guide():
    """8000, or another one where that is taken."""
    with socket.socket() as tried:
        return free_port() if tried.connect_ex(("127.0.0.1", 8000)) == 0 else 8000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data, and the tiny base where the guide's model would be."""
    folder = tmp_path_factory.mktemp("root")
    rows = folder / "data" / "vision_dataset.jsonl"
    assert main(["sample", "-o", str(rows), "--num-examples", "16", "--size", "48"]) == 0
    shutil.copytree(tiny_model("qwen2.5-vl"), folder / "Qwen" / "Qwen2.5-VL-3B-Instruct")
    return folder


@pytest.fixture(scope="module")
def served(root):
    found = JobServer(root, port=port_of_the_guide(), VLMHELPERS_TOKEN=TOKEN)
    yield found
    found.end()


def body(name, steps, **more):
    values = {"max_steps": steps, "batch_size": 1, "gradient_accumulation_steps": 1, "logging_steps": 1} | more
    names = {"name": name, "base_model": "qwen2.5-vl", "dataset_path": "data/vision_dataset.jsonl"}
    return names | {"hyperparameters": values}


def events_of(answer):
    """(id, event, data) of each event, until the stream ends."""
    fields = {}
    for line in answer.iter_lines(decode_unicode=True):
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


@pytest.fixture(scope="module")
def guided(served, tmp_path_factory):
    """The answer to the guide's call, with the token where `requests` looks for one."""
    file = tmp_path_factory.mktemp("home") / "netrc"
    file.write_text(f"machine localhost login me password {TOKEN}\n")
    file.chmod(0o600)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETRC", str(file))
        exec(GUIDE.replace("localhost:8000", f"localhost:{served.port}"), names)
    return names["response"]


def test_the_guides_own_call_is_trained_to_the_end(served, guided, root):
    assert guided.status_code == 201 and guided.headers["Location"] == f"{JOBS}/vision-model-1"
    assert guided.json()["state"] in ("starting", "training")
    done = served.wait("vision-model-1", "finished")
    values = {"learning_rate": 2e-5, "epochs": 3, "batch_size": 1, "gradient_accumulation_steps": 8}
    assert values.items() <= done["settings"].items()
    assert (done["step"], done["max_steps"], done["output_dir"]) == (6, 6, "models/vision-model-1")
    assert done["loss"] > 0 and done["error"] is None
    assert (root / "models" / "vision-model-1" / "adapter" / "adapter_model.safetensors").is_file()
    assert "6 steps on 16 rows" in served.get("/vision-model-1/log").text
    assert served.get("/vision-model-1/log?lines=1").text.count("\n") == 1


def test_the_same_call_again_is_refused_and_changes_nothing(served, guided):
    again = served.post(json=json.loads(guided.request.body))
    assert again.status_code == 409 and "choose another name" in again.json()["detail"]
    assert len(served.get().json()["jobs"]) == 1


def test_events_come_while_it_trains_and_from_any_place_on(served):
    assert served.post(json=body("watched", 6)).status_code == 201
    with served.get("/watched/events", stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = list(events_of(answer))
    *progress, (_, name, job) = found
    assert name == "end" and job["state"] == "finished" and job["step"] == 6
    entries = (served.root / job["output_dir"] / "progress.jsonl").read_text().splitlines()
    assert [data for _, _, data in progress] == [json.loads(line) for line in entries]
    assert [data["step"] for _, _, data in progress if data.get("loss") is not None] == [1, 2, 3, 4, 5, 6]
    for number in (1, len(progress) - 1):
        place = {"Last-Event-ID": progress[number - 1][0]}
        with served.get("/watched/events", headers=place, stream=True) as answer:
            assert list(events_of(answer)) == found[number:]
    assert served.get("/watched/events", headers={"Last-Event-ID": progress[-1][0]}).status_code == 204


def test_a_job_is_stopped_gone_on_with_and_removed(served, root):
    assert served.post(json=body("long", 150)).status_code == 201
    served.wait("long", "training")
    refused = served.ask("DELETE", "/long")
    assert refused.status_code == 409 and "stop it first" in refused.json()["detail"]
    assert served.post("/long/resume").status_code == 409
    assert served.post("/long/stop").status_code == 202
    stopped = served.wait("long", "stopped")
    assert 0 < stopped["step"] < 150 and stopped["seconds_left"] is None
    assert served.post("/long/resume").status_code == 202
    with served.get("/long/events", stream=True) as answer:
        *_, (_, _, last) = events_of(answer)
    assert last["state"] == "finished" and last["step"] == 150
    assert served.ask("DELETE", "/long").status_code == 204
    assert served.get("/long").status_code == 404 and not (root / "jobs" / "long").exists()
    assert (root / "data" / "vision_dataset.jsonl").is_file() and served.get("/watched").ok


def test_what_a_run_cannot_do_is_its_error_and_reaches_no_shell(served, root):
    name = "$(touch pwned); `touch pwned` | touch pwned"
    evil = body(name, 1, lr_scheduler_type="linear", text_field=name, response_field="'; touch pwned; '")
    answer = served.post(json=evil | {"output_dir": "models/$(touch pwned); x"})
    assert answer.status_code == 201, answer.text
    job = answer.json()["id"]
    end = time.monotonic() + 120
    while (found := served.get(f"/{job}").json())["state"] != "failed":
        assert time.monotonic() < end and found["state"] not in ("finished", "lost"), found
        time.sleep(0.1)
    assert found["error"] and found["name"] == name
    assert not list(root.rglob("pwned"))
    assert served.ask("DELETE", f"/{job}").status_code == 204


def test_jobs_outlive_a_server_that_is_killed_and_keep_their_order(root, tmp_path):
    shutil.copytree(root / "data", tmp_path / "data")
    first = JobServer(tmp_path)
    for name in ("one", "two"):
        assert first.post(json=body(name, 200 if name == "one" else 2)).status_code == 201
    first.wait("one", "training")
    assert first.get("/two").json()["state"] == "waiting"
    first.end(signal.SIGKILL)
    processes = {name: psutil.Process(read_process(tmp_path / "jobs" / name)["pid"]) for name in ("one", "two")}
    assert all(process.is_running() for process in processes.values())
    second = JobServer(tmp_path)
    assert [job["id"] for job in second.get().json()["jobs"]] == ["two", "one"]
    assert second.get("/one").json()["state"] == "training"
    assert second.wait("one", "finished")["step"] == 200 and second.wait("two", "finished")["step"] == 2
    *_, ended = entries_of(tmp_path / "jobs" / "one")
    begun = next(entry for entry in entries_of(tmp_path / "jobs" / "two") if entry.get("event") == "training")
    assert ended["time"] < begun["time"]
    assert second.end() == 0


def entries_of(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def test_a_waiting_job_is_stopped_and_two_go_on_at_once(root, tmp_path):
    shutil.copytree(root / "data", tmp_path / "data")
    served = JobServer(tmp_path, "--at-once", 2)
    for name in ("a", "b", "c", "d"):
        assert served.post(json=body(name, 4000)).status_code == 201
    served.wait("a", "training")
    served.wait("b", "training")
    served.wait("d", "waiting")
    assert served.get("/c").json()["state"] == "waiting"
    served.post("/c/stop")
    served.wait("c", "stopped")
    served.post("/a/stop?now=true")
    served.wait("d", "training")
    assert served.get("/b").json()["state"] == "training"
    for name in ("b", "d"):
        served.post(f"/{name}/stop?now=true")
        served.wait(name, "stopped")
    assert served.end() == 0


def test_a_client_without_requests_needs_no_more_than_a_header(served):
    with socket.create_connection(("127.0.0.1", served.port), 30) as client:
        client.sendall(f"GET {JOBS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert requests.get(served.url + JOBS, auth=("any", TOKEN), timeout=30).ok
