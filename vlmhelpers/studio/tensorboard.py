"""TensorBoard beside the panel."""

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from markupsafe import Markup

from vlmhelpers.common.display import Html


def start(folder: str | os.PathLike) -> Html:
    """Starts TensorBoard on the loopback address for the runs below a folder; gives a link to it, and a frame with it.

    It ends with this process. Where the server is another machine, TENSORBOARD_PROXY_URL says how it is reached. Raises
    ValueError where it is not installed, and without a run that was recorded for it.
    """
    if not find_spec("tensorboard"):
        raise ValueError("TensorBoard is not installed: pip install tensorboard, and restart the kernel")
    if not any(Path(folder).rglob("events.out.tfevents.*")):
        raise ValueError(f"no run in {folder} was recorded for TensorBoard: train one with report_to=tensorboard")
    url, proxy = _launch(os.path.abspath(folder)), os.environ.get("TENSORBOARD_PROXY_URL")
    if proxy:
        url = proxy.replace("%PORT%", url.rstrip("/").rpartition(":")[2])
    frame = Markup(
        '<p><a href="{}" target="_blank" rel="noopener">{}</a></p>'
        '<iframe src="{}" title="TensorBoard" style="width:100%;height:600px;border:1px solid #8888"></iframe>'
    ).format(url, url, url)
    return Html(frame, url)


@cache
def _launch(folder):
    """The address of the TensorBoard for a folder, one in a process."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(logdir=folder, host="127.0.0.1", port=0)
    return board.launch()
