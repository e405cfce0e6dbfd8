"""The command that serves jobs: who may listen where, with which token, and what it describes itself as."""

import json
import os
import re
import socket

import pytest
import requests
from job_server import JOBS, JobServer, free_port
from jsonschema import Draft202012Validator
from sleeping_jobs import add_job, serving

from vlmhelpers.cli import main
from vlmhelpers.common.files import one_process
from vlmhelpers.service import server
from vlmhelpers.service.app import JobView
from vlmhelpers.service.jobs import REGISTRY
from vlmhelpers.service.places import Root
from vlmhelpers.training.config import RunConfig

LONG = "0123456789abcdef"


@pytest.fixture(scope="module")
def served(tmp_path_factory, sleeper):
    root = tmp_path_factory.mktemp("root")
    add_job(root, "ended", sleeper, lines=['{"time": 1.0, "step": 1, "max_steps": 2, "loss": 0.5}'], end="finished")
    with serving(root) as found:
        yield found


@pytest.fixture(scope="module")
def schema(served):
    return requests.get(served.url + "/openapi.json", timeout=30).json()


def refusal(capsys, *arguments):
    assert main(["serve", *map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.fixture
def never(monkeypatch):
    """Nothing is served, should nothing be refused."""
    monkeypatch.setattr(server, "_listen", lambda *given: pytest.fail("it was not refused"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", ""])
def test_others_are_not_let_in_without_a_token_of_the_users(tmp_path, capsys, never, monkeypatch, host):
    monkeypatch.delenv("VLMHELPERS_TOKEN", raising=False)
    assert "VLMHELPERS_TOKEN or by --token-file" in refusal(capsys, "--root", tmp_path, "--host", host)


@pytest.mark.parametrize("token", ["", "short", "fifteen-letters", "sixteen letters or so", "ééééééééééééééééé"])
def test_tokens_that_are_not_safe(tmp_path, capsys, never, monkeypatch, token):
    monkeypatch.setenv("VLMHELPERS_TOKEN", token)
    assert "VLMHELPERS_TOKEN is no safe token" in refusal(capsys, "--root", tmp_path)


def test_a_token_file_is_for_its_user_alone(tmp_path, monkeypatch):
    root = Root(tmp_path)
    monkeypatch.setenv("VLMHELPERS_TOKEN", "another-token-of-it")
    file = tmp_path.parent / f"{tmp_path.name}-token"
    file.write_text(f"{LONG}\n")
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        server.read_token(file, root)
    file.chmod(0o600)
    assert server.read_token(file, root) == LONG and "VLMHELPERS_TOKEN" not in os.environ
    with pytest.raises(ValueError, match="under the root"):
        server.read_token(file.rename(tmp_path / "token"), root)


def test_what_else_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("VLMHELPERS_TOKEN", raising=False)
    assert "choose one from 1 to 65535" in refusal(capsys, "--root", tmp_path, "--port", 70000)
    assert "is no folder" in refusal(capsys, "--root", tmp_path / "none")
    assert "at_once is 0" in refusal(capsys, "--root", tmp_path, "--at-once", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Choose another --port" in refusal(capsys, "--root", tmp_path, "--port", taken.getsockname()[1])
    with one_process(tmp_path / REGISTRY, "serve"):
        assert "writes there" in refusal(capsys, "--root", tmp_path, "--port", free_port())


def test_without_fastapi(tmp_path, capsys, never, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    assert "pip install fastapi uvicorn" in refusal(capsys, "--root", tmp_path)


@pytest.mark.slow
def test_it_ends_with_ctrl_c_while_someone_listens(tmp_path, sleeper):
    add_job(tmp_path, "busy", sleeper)
    found = JobServer(tmp_path)
    assert re.search(rf"Jobs under {tmp_path}: http://127.0.0.1:{found.port}{JOBS}\n", "".join(found.said))
    assert len(found.token) >= 43
    with found.get("/busy/events", stream=True) as events:
        assert next(events.iter_lines()) == b"retry: 2000"
        assert found.end(2) == 0
    assert (tmp_path / "server.log").read_text() == "" and sleeper.poll() is None


@pytest.mark.slow
def test_a_token_of_the_users_is_not_printed(tmp_path):
    found = JobServer(tmp_path, VLMHELPERS_TOKEN=LONG)
    assert LONG not in "".join(found.said) and found.get().json() == {"jobs": []}
    assert found.end() == 0


def test_its_description_is_one(schema):
    """By the parts of the OpenAPI 3.1 specification that programs rely on: every schema in it is one."""
    assert schema["openapi"].startswith("3.1") and schema["info"]["version"]
    found = set()
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            found.add((method, path.removeprefix(JOBS)))
            names = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"}
            assert names == set(re.findall(r"{(\w+)}", path)) and operation["responses"]
    one = [("get", ""), ("delete", ""), ("post", "/stop"), ("post", "/resume"), ("get", "/log"), ("get", "/events")]
    assert found == {("get", ""), ("post", ""), *((method, "/{id}" + path) for method, path in one)}
    for part in schemas_in(schema):
        Draft202012Validator.check_schema(part)
    assert schema["security"] and schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def schemas_in(value):
    if isinstance(value, dict):
        if isinstance(value.get("schema"), dict):
            yield value["schema"]
        yield from (part for one in value.values() for part in schemas_in(one))
    elif isinstance(value, list):
        yield from (part for one in value for part in schemas_in(one))


def test_every_reference_in_it_leads_somewhere(schema):
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(schema)))
    assert references
    for reference in references:
        found = schema
        for name in reference.split("/"):
            found = found[name]


def test_it_describes_what_it_takes_and_gives(served, schema):
    body = schema["paths"][JOBS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    given = body["properties"]["hyperparameters"]["properties"]
    assert {*given, "model_id", "dataset", "output_dir"} == {*RunConfig.described(), "num_epochs"} | {"model_id"}
    shown = served.ask("GET", "/ended").json()
    JobView.model_validate(shown)
    described = {"$ref": "#/components/schemas/JobDetails", "components": schema["components"]}
    Draft202012Validator(described).validate(shown)
    assert (shown["state"], shown["step"], shown["loss"]) == ("finished", 1, 0.5)


def test_its_page_needs_nothing_from_elsewhere(served, schema):
    answer = requests.get(served.url + "/docs", timeout=30)
    assert answer.ok and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"(src|href)=\"?(https?:)?//|@import|url\(", answer.text)
    for path in schema["paths"]:
        assert path in answer.text
    assert "learning_rate" in answer.text and "num_epochs" in answer.text
