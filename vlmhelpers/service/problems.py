"""Errors as problem details (RFC 9457), with the words of the command line."""

import sys
import traceback
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vlmhelpers.common.printable import printable
from vlmhelpers.service.jobs import TooManyJobs
from vlmhelpers.service.request import UnusableRequest

MEDIA_TYPE = "application/problem+json"
_RETRY_SECONDS = "30"
_UNFORESEEN = "something unforeseen went wrong: the server has printed it"
_STATUS = {  # of errors of the package; of a class the first that it is
    BlockingIOError: 409,
    FileExistsError: 409,
    FileNotFoundError: 409,
    TooManyJobs: 429,
    ValueError: 422,
    OSError: 500,
}


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: object) -> JSONResponse:
    """An answer that says what is wrong. `more`: further members of the problem."""
    said = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    return JSONResponse(said | {"detail": printable(detail)} | more, status, headers, MEDIA_TYPE)


def say_problems(app: FastAPI) -> None:
    """Lets all errors of an app become problem details."""
    for kind, status in _STATUS.items():
        app.add_exception_handler(kind, _of_package(status))
    app.add_exception_handler(UnusableRequest, _unusable)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_query)
    app.add_exception_handler(Exception, _unforeseen)


def _of_package(status):
    headers = {"Retry-After": _RETRY_SECONDS} if status == 429 else None

    async def handle(request: Request, error: Exception):
        return problem(status, str(error), headers)

    return handle


async def _unusable(request, error):
    errors = [{"name": name, "detail": printable(text)} for name, text in error.problems.items()]
    return problem(422, str(error), errors=errors)


async def _of_http(request, error):
    detail = error.detail
    if error.status_code == 404 and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = "there is nothing at this address: see /docs"
    return problem(error.status_code, detail, error.headers)


async def _of_query(request, error):
    found = {str(wrong["loc"][-1]): f"{wrong['loc'][-1]}: {wrong['msg']}" for wrong in error.errors()}
    return await _unusable(request, UnusableRequest(found))


async def _unforeseen(request, error):
    traceback.print_exception(error, file=sys.stderr)
    return problem(500, _UNFORESEEN)
