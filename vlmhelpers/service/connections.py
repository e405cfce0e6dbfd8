"""Connections that neither stay open without a whole request nor, in whatever number, keep others out."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 128  # at a time; many systems allow a process 256 files
REQUEST_SECONDS = 15  # until a request has arrived whole


class Connection(H11Protocol):
    """A connection of uvicorn's with a limit for the time that a request takes to arrive.

    One above `MOST` takes the place of the oldest that has no whole request.
    """

    _limit = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        self._watch()
        if len(self.connections) > MOST:
            idle = [other for other in self.connections if not other.is_working]
            min(idle, key=lambda other: other.since).give_up()  # this one is idle, too

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    @property
    def is_working(self) -> bool:
        """Whether a whole request is being answered."""
        return bool(self.cycle) and not self.cycle.response_complete and not self._is_incomplete()

    def give_up(self) -> None:
        """Ends the connection without waiting for the client."""
        self.connections.discard(self)
        self.transport.abort()

    def _is_incomplete(self):
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _watch(self):
        if not self._is_incomplete():
            self._unwatch()
        elif self._limit is None:
            self._limit = self.loop.call_later(REQUEST_SECONDS, self.give_up)

    def _unwatch(self):
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
