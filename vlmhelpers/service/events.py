"""What a run says of itself, as server-sent events while it says it."""

import asyncio
import io
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vlmhelpers.service.jobs import Job
from vlmhelpers.service.problems import problem
from vlmhelpers.training.progress import PROGRESS

MOST = 32  # streams at a time
_EVERY = 0.5  # seconds between two looks
_SIGN_SECONDS = 10  # without an event a comment is sent, by which a lost client is noticed
_PIECE = 2**16  # bytes that are read at once
_LONGEST = 2**22  # bytes of a line


class Streams:
    """How many streams are open, and whether they are to end."""

    def __init__(self, is_closing: Callable[[], bool] = lambda: False):
        self.open, self.is_closing = 0, is_closing


class EventStream(StreamingResponse):
    """The entries of a job's progress.jsonl as events named progress, from a place in it on, then an event named end.

    An event's id is the place after its line, in bytes: a client that comes back with it as Last-Event-ID misses
    nothing. The end has the job as its data; it comes when the run has ended.
    """

    media_type = "text/event-stream"

    def __init__(self, job: Job, start: int, streams: Streams, describe: Callable[[Job], dict]):
        super().__init__(_events(job, start, streams, describe), headers={"X-Accel-Buffering": "no"})
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams.open >= MOST:
            await self.body_iterator.aclose()
            refusal = problem(503, f"{MOST} streams are open: try again later", {"Retry-After": "30"})
            return await refusal(scope, receive, send)
        self._streams.open += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open -= 1


async def _events(job, place, streams, describe) -> AsyncIterator[str]:
    said = time.monotonic()
    yield "retry: 2000\n\n"
    while not streams.is_closing():
        going_on = await run_in_threadpool(lambda: job.run.is_running)  # before the file: what came last is read, too
        before, (lines, place) = place, await run_in_threadpool(_read, job, place)
        for at, line in lines:
            yield f"id: {at}\nevent: progress\ndata: {line}\n\n"
        if place != before:
            said = time.monotonic()
            continue
        if not going_on:
            yield f"id: {place}\nevent: end\ndata: {json.dumps(await run_in_threadpool(describe, job))}\n\n"
            return
        if time.monotonic() - said > _SIGN_SECONDS:
            said = time.monotonic()
            yield ": still there\n\n"
        await asyncio.sleep(_EVERY)


def _read(job, place):
    """([(place after it, line of JSON), ...], place) of the whole lines from a place on, as far as one piece goes."""
    found = []
    with suppress(FileNotFoundError), open(job.run.folder / PROGRESS, "rb") as file:
        if os.fstat(file.fileno()).st_size < place:  # another run's
            place = 0
        file.seek(place)
        piece = file.read(_PIECE)
        if b"\n" not in piece and len(piece) == _PIECE:  # answers of many rows
            piece += file.readline(_LONGEST)
        for line in io.BytesIO(piece):
            if not line.endswith(b"\n"):  # half written, or cut by the piece
                break
            place += len(line)
            with suppress(ValueError):  # torn
                found.append((place, json.dumps(json.loads(line))))
    return found, place


def start_of(job: Job, last_event_id: str | None) -> int:
    """Where a stream begins that goes on after the event of that id; at the beginning where no line ends there."""
    if not (last_event_id or "").isdecimal() or len(last_event_id) > 15:
        return 0
    place = int(last_event_id)
    with suppress(FileNotFoundError), open(job.run.folder / PROGRESS, "rb") as file:
        if 0 < place <= os.fstat(file.fileno()).st_size:
            file.seek(place - 1)
            return place if file.read(1) == b"\n" else 0
    return 0


def has_ended(job: Job, place: int) -> bool:
    """Whether a run has ended and said nothing after a place."""
    if job.run.is_running:
        return False
    return place > 0 and _read(job, place)[1] == place
