"""The addresses of the job interface, and what each of them takes and gives."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vlmhelpers.common.printable import printable
from vlmhelpers.common.version import VERSION
from vlmhelpers.service.events import EventStream, Streams, has_ended, start_of
from vlmhelpers.service.guard import Guard
from vlmhelpers.service.jobs import Job, Jobs
from vlmhelpers.service.page import page_of
from vlmhelpers.service.problems import MEDIA_TYPE, say_problems
from vlmhelpers.service.request import JobRequest, read_request
from vlmhelpers.training.background import CONFIG
from vlmhelpers.training.config import RunConfig

PATH = "/api/v1/training/jobs"
LARGEST_BODY = 2**16  # bytes
_RUNNING = ("waiting", "starting", "training", "evaluating", "stopping")
_ENDED = ("new", "finished", "stopped", "failed", "lost", "removed")
_ABOUT = "Starts, watches and stops runs. Every setting of a run: `python -m vlmhelpers train --help`."
# Whatever variables of the environment say.
_NO_TELEMETRY = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)


class Problem(BaseModel):
    """What is wrong (RFC 9457); errors: a sentence for each setting that is to be changed."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []


class JobView(BaseModel):
    """A job as it is now."""

    id: str
    name: str
    state: Literal[(*_RUNNING, *_ENDED)]
    step: int | None
    max_steps: int | None
    loss: float | None
    seconds_left: float | None
    error: str | None
    created: datetime
    output_dir: str
    links: dict[str, str]


class JobDetails(JobView):
    """A job with all settings of its run, whose paths start at the root."""

    settings: dict


class JobList(BaseModel):
    """All jobs, the newest first."""

    jobs: list[JobView]


_SAYS = {status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in (401, 404, 409, 413, 415, 422, 429, 503)}
router = APIRouter(prefix=PATH, responses={401: _SAYS[401]})
_ONE = {404: _SAYS[404]}


def make_app(
    jobs: Jobs, token: str, names: Iterable[str] = (), is_closing: Callable[[], bool] = lambda: False
) -> Guard:
    """The job interface as an ASGI app, for requests with the token.

    `names`: see `Guard`. `is_closing`: whether open streams of events are to end.
    """
    texts = {"title": "vlmhelpers", "version": VERSION, "description": _ABOUT}
    app = FastAPI(**texts, docs_url=None, redoc_url=None, redirect_slashes=False, telemetry=_NO_TELEMETRY)
    app.state.jobs, app.state.streams = jobs, Streams(is_closing)
    say_problems(app)
    app.include_router(router)
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.openapi = _with_security(app.openapi)
    return Guard(app, token, names)


def _with_security(describe):
    def described():
        schema = describe()
        kinds = {"token": {"type": "http", "scheme": "bearer"}, "password": {"type": "http", "scheme": "basic"}}
        schema.setdefault("components", {})["securitySchemes"] = kinds
        schema["security"] = [{name: []} for name in kinds]
        return schema

    return described


def _docs(request: Request):
    return HTMLResponse(page_of(request.app.openapi()))


def _jobs(request: Request) -> Jobs:
    return request.app.state.jobs


def _job(request: Request, id: str) -> Job:
    if (job := request.app.state.jobs.find(id)) is None:
        raise HTTPException(404, f"there is no job {printable(id[:100])!r}")
    return job


async def _body(request: Request) -> object:
    """The JSON of a body. Raises HTTPException for another, and for one that is too large, however it comes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
    content = bytearray()
    try:
        async for piece in request.stream():
            content += piece
            if len(content) > LARGEST_BODY:
                raise HTTPException(413, f"the body has more than {LARGEST_BODY} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # half a character can be written nowhere
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON text") from None
    return value


TheJobs, TheJob = Annotated[Jobs, Depends(_jobs)], Annotated[Job, Depends(_job)]


def _schema():
    """The JSON schema of a body: the settings of a run are its hyperparameters, all optional here."""
    schema = TypeAdapter(JobRequest).json_schema()
    settings = TypeAdapter(RunConfig).json_schema()["properties"]
    settings["num_epochs"] = settings["epochs"]
    others = {name: setting for name, setting in settings.items() if name not in ("model_id", "dataset", "output_dir")}
    description = schema["properties"]["hyperparameters"]["description"]
    given = {"type": "object", "properties": others, "additionalProperties": False, "description": description}
    schema["properties"]["hyperparameters"] = given
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("", status_code=201, response_model=JobDetails, responses=_SAYS, openapi_extra=_schema())
async def create(jobs: TheJobs, body: Annotated[object, Depends(_body)]):
    """Starts a job, which waits while others train."""
    job = await run_in_threadpool(lambda: jobs.create(read_request(body)))
    shown = await run_in_threadpool(_details, jobs, job)
    return JSONResponse(shown, 201, {"Location": shown["links"]["self"]})


@router.get("", response_model=JobList)
def list_all(jobs: TheJobs):
    """All jobs, the newest first."""
    return {"jobs": [_view(jobs, job) for job in jobs.all()]}


@router.get("/{id}", response_model=JobDetails, responses=_ONE)
def show(jobs: TheJobs, job: TheJob):
    """One job, with its settings."""
    return JSONResponse(_details(jobs, job))


@router.delete("/{id}", status_code=204, responses=_ONE | {409: _SAYS[409]})
def delete(jobs: TheJobs, job: TheJob):
    """Removes a job that has ended, and the folder of its run with all that is in it."""
    jobs.delete(job)
    return Response(status_code=204)


@router.post("/{id}/stop", status_code=202, response_model=JobView, responses=_ONE)
def stop(jobs: TheJobs, job: TheJob, now: bool = False):
    """Lets a job save a checkpoint and end; now: ends it at once."""
    job.run.abort() if now else job.run.stop()
    return _view(jobs, job)


@router.post("/{id}/resume", status_code=202, response_model=JobView, responses=_ONE | {409: _SAYS[409]})
def resume(jobs: TheJobs, job: TheJob, accept_changes: bool = False):
    """Goes on with a job that was stopped or lost, from its newest checkpoint; it waits while others train."""
    jobs.resume(job, accept_changes)
    return _view(jobs, job)


@router.get("/{id}/log", response_class=PlainTextResponse, responses=_ONE | {422: _SAYS[422]})
def log(job: TheJob, lines: Annotated[int, Query(ge=1, le=1000)] = 100):
    """The last lines that the run printed."""
    return PlainTextResponse("".join(f"{printable(line)}\n" for line in job.run.log_lines(lines)))


_STREAM = {200: {"content": {EventStream.media_type: {}}, "description": "Events, as the run says them"}}


@router.get("/{id}/events", response_class=StreamingResponse, responses=_STREAM | _ONE | {503: _SAYS[503]})
def events(request: Request, jobs: TheJobs, job: TheJob, last_event_id: Annotated[str | None, Header()] = None):
    """What the run says of itself, from its beginning or after Last-Event-ID, while it goes on, as server-sent events.

    Events named progress are entries of its progress.jsonl; the last one, named end, is the job. 204: nothing is left.
    """
    start = start_of(job, last_event_id)
    if has_ended(job, start):
        return Response(status_code=204)
    return EventStream(job, start, request.app.state.streams, lambda job: _view(jobs, job))


def _view(jobs, job) -> dict:
    """A job as JSON values."""
    last, here = job.run.last or {}, f"{PATH}/{quote(job.id)}"
    view = {"id": job.id, "name": printable(job.name), "state": job.state}
    view |= {name: last.get(name) for name in ("step", "max_steps", "loss", "seconds_left")}
    error = job.error if view["state"] in ("failed", "lost", "removed") else None
    view |= {"error": error and printable(error), "created": datetime.fromtimestamp(job.created, UTC).isoformat()}
    links = {name: f"{here}/{name}" for name in ("log", "events", "stop", "resume")}
    return view | {"output_dir": jobs.root.relative(job.run.folder), "links": {"self": here} | links}


def _details(jobs, job):
    settings = {}
    with suppress(OSError, ValueError):  # removed or damaged by others
        settings = asdict(RunConfig.read(job.run.folder / CONFIG))
    prefix = f"{jobs.root.folder}/"
    shown = {name: v.removeprefix(prefix) if isinstance(v, str) else v for name, v in settings.items()}
    return _view(jobs, job) | {"settings": shown}
