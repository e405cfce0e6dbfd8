"""Takes out of an executed notebook what differs from run to run or from machine to machine.

What a reader wants stays: results, images, tables, warnings. Times of execution, progress bars, the state
of widgets, addresses in memory and this machine's folders go, so that two runs differ where their results
differ. Charts keep 256 colors, which look the same in a third of the bytes.
"""

import base64
import io
import re
import tempfile
from pathlib import Path

from PIL import Image

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colors and cursor moves of a terminal
_BAR = re.compile(r"\d+%\|.*\[|\d+\w* ?\[\d+:\d\d[,<]")  # tqdm: "80%|███ | 4/5 [00:01<" or "5it [00:01, "
_LOG = re.compile(r"[IW]\d{4} \d\d:\d\d:\d\d")  # torch's own log lines, stamped with the time
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
_CELL_FILE = re.compile(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/\d+\.py")


def clean(notebook, folder, root):
    """Clean `notebook` (a NotebookNode) in place; it ran in `folder`, inside the checkout `root`."""
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    for cell in notebook.cells:
        for key in ("papermill", "execution", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            outputs = _merge_streams(filter(None, map(_without_widgets, cell.outputs)))
            outputs = filter(None, map(_without_noise, outputs))
            cell.outputs = [_relative(_with_few_colors(output), Path(folder), Path(root)) for output in outputs]


def _without_widgets(output):
    """The output without its live widget, or None where only the widget's name would be left."""
    data = output.get("data", {})
    widgets = [mimetype for mimetype in data if mimetype.startswith("application/vnd.jupyter.widget")]
    for mimetype in widgets:
        del data[mimetype]
    return None if widgets and set(data) <= {"text/plain"} else output


def _with_few_colors(output):
    """The output with its PNG in the 256 colors that suit it, where that is smaller."""
    if png := output.get("data", {}).get("image/png"):
        buffer = io.BytesIO()
        image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        output.data["image/png"] = min(png, base64.b64encode(buffer.getvalue()).decode(), key=len)
    return output


def _merge_streams(outputs):
    """Join neighboring outputs of one stream: where a kernel cuts them depends on the time."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and output.get("name") == last.get("name"):
            last["text"] += output.text
        else:
            merged.append(output)
    return merged


def _without_noise(output):
    """A stream as a terminal shows it in the end, stderr without progress bars; None if nothing is left."""
    if output.output_type != "stream":
        return output
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n")]
    if output.name == "stderr":
        lines = [_ESCAPE.sub("", line) for line in lines]
        lines = [line for line in lines if line.strip() and not _BAR.search(line) and not _LOG.match(line)]
        lines += [""] if lines else []
    output.text = "\n".join(lines)
    return output if output.text else None


def _relative(value, folder, root):
    """`value` with every path in its strings as seen from `folder`, and without addresses in memory."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not key.startswith("image/"):
                value[key] = _relative(item, folder, root)
        return value
    if isinstance(value, list):
        return [_relative(item, folder, root) for item in value]
    if not isinstance(value, str):
        return value
    for path, short in ((f"{folder}/", ""), (folder, "."), (root, ".."), (Path.home(), "~")):
        value = re.sub(re.escape(str(path)) + ("" if short == "" else r"(?![\w.-])"), short, value)
    return _ADDRESS.sub(" at 0x…", _CELL_FILE.sub("<cell>", value))
