"""A local file server for a folder of images, to try downloads without a network."""

import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


def serve_folder(folder: str | os.PathLike) -> "FolderServer":
    """Serves the files in a folder at `url`, on 127.0.0.1, until `close()`. Raises NotADirectoryError without it."""
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"there is no folder {folder} to serve. Pass the one that holds the images.")
    return FolderServer(os.path.realpath(folder))


class FolderServer(ThreadingHTTPServer):
    """A running server, made by `serve_folder`."""

    def __init__(self, folder: str):
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Ends the server; a second call does nothing."""
        self.shutdown()
        self.server_close()

    def __exit__(self, *_):
        self.close()

    def handle_error(self, request, client_address):
        """Says nothing of a client that hangs up."""


class _Handler(SimpleHTTPRequestHandler):
    def translate_path(self, path):
        """The file that is asked for; for all that is none, or lies outside, a name that does not exist."""
        try:
            found = os.path.realpath(super().translate_path(path))
        except ValueError:  # a NUL in the name
            return ""
        inside = found.startswith(os.path.join(self.directory, ""))
        return found if inside and os.path.isfile(found) else ""

    def log_message(self, *_):
        """Quiet: a notebook shows what is written to stderr."""
