"""The panel as a page of its own, for a browser: the same `Studio()`, without a notebook around it."""

import os
import threading
import webbrowser
from pathlib import Path
from tempfile import TemporaryDirectory

from markupsafe import Markup

from vlmhelpers.common.local_server import LOOPBACK, check_port, new_token
from vlmhelpers.studio.texts import LANGUAGES

ADDRESS = LOOPBACK  # whoever reaches the page runs code as this user: never another address
TITLE = "Studio"
_IDLE_SECONDS = 600  # then a kernel whose page is closed ends; runs go on, in processes of their own
_LARGEST_MESSAGE = 100 * 2**20  # bytes; the images of an upload are one message, and tornado's limit is 10 MB
_POLICY = (  # the page asks no other host for anything: it also works, and loads at once, without a network
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: data: blob:; "
    "frame-src 'self' http://127.0.0.1:*; frame-ancestors 'none'"  # TensorBoard
)
_CELL = """\
import os

os.chdir({directory!r})

from vlmhelpers.studio import Studio

Studio({folder!r}, locale={language!r})
"""


def serve(folder: str | os.PathLike, port: int = 8866, language: str | None = None, open_browser: bool = True) -> None:
    """Serves the panel of the runs in `folder` until Ctrl-C or SIGTERM, and prints the address of the page.

    Only this machine can reach it, and only with the token in that address. `port`: where it is taken, another one
    near it. `language`: None for the one that was left. Runs go on when the page is closed, and when this ends; an
    evaluation or an export ends with the page, and goes on, or is begun anew, when it is asked for again. Raises
    ValueError for another language or port, and where Voila is not installed.
    """
    if language not in (None, *LANGUAGES):
        raise ValueError(f"language {language!r}: choose one of {', '.join(LANGUAGES)}")
    try:
        import voila.app  # noqa: F401  (Colab and Kaggle do not have it)
    except ImportError:
        raise ValueError(
            "the page is served by Voila: pip install voila. In a notebook, Studio() works without"
        ) from None
    check_port(port)
    with TemporaryDirectory(prefix="studio-") as place:
        notebook = Path(place) / "studio.ipynb"
        _write_notebook(notebook, folder, language)
        _server(notebook, port, open_browser).start()


def _write_notebook(path, folder, language):
    import nbformat

    source = _CELL.format(directory=os.getcwd(), folder=os.fspath(folder), language=language)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "title": TITLE}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=metadata), path)


def _server(notebook, port, open_browser):
    from voila.app import Voila

    server = Voila(
        notebook_path=str(notebook),
        ip=ADDRESS,
        port=port,
        token=new_token(),
        config_file_paths=[],  # the user's own settings of Voila are for other pages
        log_level="ERROR",
        tornado_settings={
            "headers": {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"},
            "websocket_max_message_size": _LARGEST_MESSAGE,
            "ws_ping_timeout": 30_000,  # ms, the most that tornado takes; it warns of jupyter_server's default
        },
    )
    server.config.VoilaConfiguration.show_tracebacks = True
    server.config.VoilaConfiguration.prelaunch_hook = _set_cookie
    server.config.MappingKernelManager.cull_idle_timeout = _IDLE_SECONDS
    redirect = notebook.with_name("open.html") if open_browser else None
    server.launch_browser = lambda: _announce(server, redirect)  # called when the port is known
    server.initialize([])
    return server


def _set_cookie(handler, notebook, cwd):
    """Sets the cookie without which a page that is closed or loaded anew may not end its kernel."""
    _ = handler.xsrf_token  # to read it sets it


def _announce(server, redirect):
    url = f"http://{ADDRESS}:{server.port}/?token={server.token}"
    print(f"The panel: {url}", "It ends with Ctrl-C; runs go on.", sep="\n", flush=True)
    if redirect:
        threading.Thread(target=_open, args=(url, redirect), daemon=True).start()


def _open(url, redirect):
    """Opens the page by a file that only this user reads: arguments of a browser can be read by others."""
    page = Markup('<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={0}"><a href="{0}">{1}</a>')
    descriptor = os.open(redirect, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(page.format(url, TITLE))
    webbrowser.open(redirect.as_uri())
