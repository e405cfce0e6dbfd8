"""The runner, on small notebooks made here: what it writes, what it leaves alone, what it says."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
import readme_tables
import run_notebooks
from clean_outputs import clean
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from progress import Display, Progress

from vlmhelpers.common.chart import Chart
from vlmhelpers.common.records import MIMETYPE, read_records

METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PARAMETERS = "STEPS = 3  # how many"
SAY_PID = "import os, pathlib\n_ = pathlib.Path('pid').write_text(str(os.getpid()))"


def save(folder, name, *cells):
    """Write a notebook of code cells after a title; the cell that sets STEPS is tagged as parameters."""
    notebook = new_notebook(metadata=METADATA, cells=[new_markdown_cell(f"# About {name}")])
    for source in cells:
        tags = {"tags": ["parameters"]} if source == PARAMETERS else {}
        notebook.cells.append(new_code_cell(source, metadata=tags))
    nbformat.write(notebook, folder / name)
    return folder / name


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """Call the runner with arguments: its exit code and what it printed."""
    for name in ("JUPYTER_PATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # the runner sets them for its own process

    def call(*arguments):
        code = run_notebooks.main(["--folder", str(folder), *arguments])
        return code, capsys.readouterr().out

    return call


def save_pair(folder):
    """Two sound notebooks."""
    first = save(
        folder,
        "01_first.ipynb",
        PARAMETERS,
        "import os, pathlib, sys\nfrom vlmhelpers import record\nprint(pathlib.Path('x').resolve())",
        "record('proves', 'it runs')\nrecord('steps', STEPS)\nrecord('python', sys.executable)\n"
        "record('threads', os.environ['OMP_NUM_THREADS'])\nrecord('claims', {'it runs': 'met', 'it ends': 'met'})",
    )
    second = save(folder, "02_second.ipynb", "from vlmhelpers import record", "record('train_seconds', 1.25)")
    return first, second


@pytest.fixture
def pair(folder):
    return save_pair(folder)


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    """The folder of two notebooks, the runner's exit code and what it printed. Not to be changed."""
    folder = tmp_path_factory.mktemp("good") / "notebooks"
    folder.mkdir()
    save_pair(folder)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
        for name in ("JUPYTER_PATH", "OMP_NUM_THREADS"):
            patch.setenv(name, "")
        code = run_notebooks.main(["--folder", str(folder)])
    return folder, code, shown.getvalue()


@pytest.mark.slow
def test_a_good_run_writes_outputs_and_readme_back(good_run):
    folder, code, shown = good_run
    assert code == 0, shown
    assert "[1/2] 01_first.ipynb: 4 cells" in shown
    assert "[2/2] 02_second.ipynb: 3 cells" in shown
    assert read_records(folder / "01_first.ipynb")["steps"] == 3
    assert re.search(r"Recorded results\n  01_first\n    steps +3\n.*\n    claims: 2 met\n  02", shown, re.DOTALL)
    assert "| [About 01_first.ipynb](notebooks/01_first.ipynb) | it runs |" in readme(folder)
    assert "train 1.25 s" in readme(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["01_first.ipynb", "02_second.ipynb"]


def readme(folder):
    return (folder.parent / "README.md").read_text()


@pytest.mark.slow
def test_what_is_written_back_is_clean_and_relative(good_run):
    folder = good_run[0]
    text = (folder / "01_first.ipynb").read_text()
    notebook = nbformat.read(folder / "01_first.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert str(folder) not in text
    assert notebook.cells[2].outputs[0].text == "x\n"
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]


@pytest.mark.slow
def test_running_again_one_at_a_time_changes_nothing(good_run, run, folder):
    names = "01_first.ipynb", "02_second.ipynb"
    shutil.copytree(good_run[0].parent, folder.parent, dirs_exist_ok=True)
    _, shown = run("--at-once", "1")
    assert [(folder / name).read_bytes() for name in names] == [(good_run[0] / name).read_bytes() for name in names]
    assert "up to date" in shown
    assert read_records(folder / "01_first.ipynb")["threads"] == "1"


@pytest.mark.slow
def test_the_kernel_is_the_python_that_runs_the_runner(run, pair, folder, tmp_path, monkeypatch):
    rival = tmp_path / "jupyter" / "kernels" / "python3"
    rival.mkdir(parents=True)
    spec = {"argv": ["/nonexistent", "{connection_file}"], "display_name": "x", "language": "python"}
    (rival / "kernel.json").write_text(json.dumps(spec))
    for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    code, shown = run("--only", "01", "-p", "STEPS", "1")
    assert code == 0, shown
    assert read_records(folder.parent / "outputs" / "01_first.ipynb")["python"] == sys.executable


@pytest.mark.slow
def test_the_first_failing_cell_ends_the_run(run, folder):
    cells = "print('fine')", "wheels = 3\nwheels / 0", "print('never')"
    broken = save(folder, "01_broken.ipynb", PARAMETERS, *cells)
    later = save(folder, "02_later.ipynb", "1 + 1")
    before = broken.read_bytes(), later.read_bytes()
    code, shown = run("--at-once", "1")
    assert code == 1
    assert "01_broken.ipynb, cell 4 of 5" in shown
    assert "ZeroDivisionError: division by zero" in shown
    assert "wheels / 0" in shown
    assert "02_later" not in shown
    assert (broken.read_bytes(), later.read_bytes()) == before
    assert not (folder.parent / "README.md").exists()
    kept = folder.parent / "outputs" / "01_broken.ipynb"
    assert str(kept) in shown
    assert "fine" in kept.read_text()


@pytest.mark.slow
def test_records_and_claims_of_a_run_that_failed_are_said(run, folder):
    proof = "import vlmhelpers as vlm\nvlm.record('exact_percent', 12.5)\n"
    proof += "vlm.check_claims({'it learns': 12.5 > 90, 'it packs': None, 'it ends': True})"
    save(folder, "01_wrong.ipynb", proof)
    code, shown = run()
    assert code == 1 and "AssertionError: 1 of 3 claims not met:\nit learns\n" in shown
    lines = ["exact  12.5 %", "met: it ends", "not met: it learns", "not run: it packs"]
    assert "".join(f"    {line}\n" for line in lines) in shown


@pytest.mark.slow
def test_a_failing_cell_stops_the_notebook_beside_it_too(run, folder):
    slow = save(
        folder, "01_slow.ipynb", f"{SAY_PID}\n_ = pathlib.Path('ready').touch()", "import time\ntime.sleep(120)"
    )
    wait = "import pathlib, time\nwhile not pathlib.Path('ready').exists():\n    time.sleep(0.1)"
    save(folder, "02_broken.ipynb", wait, "1 / 0")
    save(folder, "03_later.ipynb", "1 + 1")
    before = slow.read_bytes()
    started = time.monotonic()
    code, shown = run()
    assert code == 1 and time.monotonic() - started < 60
    assert "02_broken.ipynb, cell 3 of 3" in shown
    assert shown.count("FAILED") == 1 and "03_later" not in shown
    assert slow.read_bytes() == before
    kernel = int((folder / "pid").read_text())
    wait_for(lambda: not alive(kernel))


@pytest.mark.slow
def test_two_notebooks_run_at_once_each_with_a_line_of_progress(run, folder, monkeypatch):
    meet = "import pathlib, time\n_ = pathlib.Path('here{0}').touch()\nwhile not pathlib.Path('here{1}').exists():\n"
    meet += "    time.sleep(0.1)\nprint('met')\ntime.sleep(1)"  # each waits for the other
    for i in (1, 2):
        save(folder, f"0{i}_meet.ipynb", meet.format(i, 3 - i))
    monkeypatch.setattr(Display, "SECONDS_IN_LOG", 0.1)
    code, shown = run()
    assert code == 0, shown
    for number in ("01", "02"):
        assert re.search(rf"      {number}  cell 2/2  0:\d\d  met\n", shown)


@pytest.mark.slow
def test_a_notebook_runs_after_the_one_whose_outputs_it_uses(run, folder):
    save(folder, "01_user.ipynb", "RUN = 'outputs/03'  # of another", "print(open('outputs/03/made').read())")
    tag(folder / "01_user.ipynb")
    save(folder, "02_other.ipynb", "1 + 1")
    make = "import pathlib, time\ntime.sleep(1)\nfolder = pathlib.Path('outputs/03')\n"
    save(folder, "03_maker.ipynb", make + "folder.mkdir(parents=True)\n_ = (folder / 'made').write_text('here')")
    code, shown = run()
    assert code == 0, shown
    assert "[1/3] 03_maker" in shown and "[3/3] 01_user" in shown
    assert nbformat.read(folder / "01_user.ipynb", as_version=4).cells[2].outputs[0].text == "here\n"


def tag(path):
    """Tag the first code cell as that of the parameters."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)


def test_on_a_terminal_the_lines_are_drawn_over(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(Display, "SECONDS_ON_TERMINAL", 0.1)
    with Display() as display:
        display.running += [Progress(3, "01  "), Progress(5, "02  ")]
        time.sleep(0.5)
        display.print("an event")
    shown = capsys.readouterr().out
    frame = r"      01  cell 0/3  0:0\d  starting Python\n      02  cell 0/5  0:0\d  starting Python\n"
    assert re.match(frame + re.escape("\r\033[2A\033[J") + frame, shown)
    assert "\r\033[2A\033[Jan event\n" in shown


@pytest.mark.slow
def test_an_inserted_parameters_cell_does_not_shift_the_number(run, folder):
    save(folder, "01_broken.ipynb", PARAMETERS, "1 / (STEPS - 5)")
    code, shown = run("-p", "STEPS", "5")
    assert code == 1
    assert "01_broken.ipynb, cell 3 of 3" in shown


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failure(run, folder):
    fatal = save(folder, "01_fatal.ipynb", "import os", "os._exit(9)")
    before = fatal.read_bytes()
    code, shown = run()
    assert code == 1
    assert "DeadKernelError" in shown
    assert "01_fatal.ipynb, cell 3 of 3" in shown
    assert fatal.read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_run_leaves_the_notebook_alone(folder):
    slow = save(folder, "01_slow.ipynb", f"{SAY_PID}\nimport time\ntime.sleep(120)")  # interrupted within a cell
    before = slow.read_bytes()
    command = [sys.executable, run_notebooks.__file__, "--folder", folder]
    # A shell lets what it starts in the background ignore SIGINT, and all that this starts in turn.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **heed)
    wait_for((folder / "pid").exists)
    kernel = int((folder / "pid").read_text())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert slow.read_bytes() == before
    wait_for(lambda: not alive(kernel))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_only_runs_what_is_named(run, pair, folder):
    before = pair[0].read_bytes()
    code, shown = run("--only", "02")
    assert code == 0, shown
    assert "[1/1] 02_second.ipynb" in shown
    assert pair[0].read_bytes() == before
    assert read_records(pair[1]) == {"train_seconds": 1.25}


@pytest.mark.slow
def test_parameters_change_a_copy(run, pair, folder):
    before = [path.read_bytes() for path in pair]
    code, shown = run("-p", "STEPS", "2e-4")
    assert code == 0, shown
    assert [path.read_bytes() for path in pair] == before
    assert read_records(folder.parent / "outputs" / "01_first.ipynb")["steps"] == 2e-4
    assert (folder.parent / "outputs" / "02_second.ipynb").is_file()
    assert not (folder.parent / "README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "07"], "no notebook begins with '07'; there are: 01_first.ipynb, 02_second.ipynb"),
        (["-p", "STEP", "2"], "no parameters cell sets STEP"),
    ],
)
def test_a_slip_of_the_keyboard_is_said(run, pair, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        run(*arguments)


@pytest.mark.parametrize(
    ("name", "value", "is_path"),
    [
        ("CSV_PATH", "my.csv", True),
        ("IMAGE_ROOT", "not-there/yet", True),
        ("OUTPUT_DIR", "..", True),
        ("OUTPUT_DIR", "", False),
        ("CSV_PATH", None, False),
        ("DATASET", "my.csv", True),
        ("DATASET", "someone/not-here", False),
        ("MODEL_ID", "qwen3-vl", False),
        ("REPORT_TO", "wandb", False),  # the folder that this tracker makes
    ],
)
def test_paths_are_taken_from_where_the_command_was_called(tmp_path, monkeypatch, name, value, is_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.csv").touch()
    (tmp_path / "wandb").mkdir()
    assert run_notebooks.from_here(name, value) == (os.path.abspath(tmp_path / value) if is_path else value)


@pytest.mark.slow
def test_a_file_named_on_the_command_line_is_read(run, folder, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my.csv").write_text("a,b")
    monkeypatch.chdir(tmp_path / "mine")
    save(folder, "01_reader.ipynb", "CSV_PATH = '../data.csv'  # a table", "print(open(CSV_PATH).read())")
    tag(folder / "01_reader.ipynb")
    code, shown = run("-p", "CSV_PATH", "my.csv")
    assert code == 0, shown


def test_notebooks_without_a_number_come_last(pair, folder):
    save(folder, "about.ipynb", "1 + 1")
    save(folder, "10_tenth.ipynb", "1 + 1")
    names = ["01_first.ipynb", "02_second.ipynb", "10_tenth.ipynb", "about.ipynb"]
    assert [path.name for path in run_notebooks.select(folder, [])] == names
    (about,) = run_notebooks.select(folder, ["about"])
    assert run_notebooks.Run(about, about, {}).number == "about"


def test_an_empty_folder_is_an_error(run):
    with pytest.raises(SystemExit, match=r"no notebook \(\*\.ipynb\)"):
        run()


def test_progress_shows_the_cell_and_its_last_printed_line():
    progress = Progress(total=12)
    assert "cell 0/12  0:00  starting Python" in progress.line()
    progress.begin(7)
    progress.write("step 1\rstep 2\n\n")
    assert "cell 7/12  0:00  step 2" in progress.line()
    progress.write("x" * 1000)
    assert len(progress.line()) < 1000
    progress.begin(8)
    assert progress.line().endswith("cell 8/12  0:00  ")


def cleaned(*outputs, root="/checkout"):
    notebook = new_notebook(cells=[new_code_cell("x", outputs=list(outputs))])
    clean(notebook, f"{root}/notebooks", root)
    return notebook.cells[0].outputs


def stream(text, name="stderr"):
    return new_output("stream", name=name, text=text)


def test_progress_bars_and_stamped_log_lines_go_and_warnings_stay():
    bar = "\rMap:   0%|    | 0/4 [00:00<?, ? examples/s]\rMap: 100%|████| 4/4 [00:00<00:00, 9.1 examples/s]\n"
    log = "W1121 01:13:14.242000 10580 torch/x.py:630] deprecated\n"
    assert cleaned(stream(bar), stream("5it [00:01, 4.1it/s]\n"), stream(log)) == []
    kept = cleaned(stream(bar), stream("UserWarning: 50% is a lot\n"), stream(log))
    assert [output.text for output in kept] == ["UserWarning: 50% is a lot\n"]


def test_neighboring_streams_are_joined_and_rewritten_lines_end_as_on_a_terminal():
    outputs = cleaned(stream("a\nstep 1\rste", "stdout"), stream("p 2\nb\n", "stdout"))
    assert [output.text for output in outputs] == ["a\nstep 2\nb\n"]


def test_widgets_leave_only_what_can_be_read():
    bare = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "HBox()"}
    rich = {**bare, "text/html": "<b>table</b>"}
    outputs = cleaned(new_output("display_data", data=bare), new_output("display_data", data=rich))
    assert [set(output.data) for output in outputs] == [{"text/plain", "text/html"}]


def test_paths_and_addresses_of_the_machine_go():
    text = "/checkout/notebooks/a.csv /checkout/data /checkout2/data <Model at 0x7f6e63d6fd80>\n"
    assert cleaned(stream(text, "stdout"))[0].text == "a.csv ../data /checkout2/data <Model at 0x…>\n"
    mixed = new_output("display_data", data={"text/html": "<i>/checkout/x</i>", "image/svg+xml": "/checkout/x"})
    assert cleaned(mixed)[0].data == {"text/html": "<i>../x</i>", "image/svg+xml": "/checkout/x"}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("tuned_exact", 0.97512, "tuned exact 0.975"),
        ("tuned_exact_percent", 97.5, "tuned exact 97.5 %"),
        ("train_seconds", 71.26, "train 71.3 s"),
        ("trained_parameters", 1234567, "trained parameters 1,234,567"),
        ("tokens_per_second", 12345.6, "tokens per second 12,346"),
        ("seconds", 3, "seconds 3"),
        ("same", True, "same yes"),
        ("interval", [0.94, 0.99], "interval 0.94, 0.99"),
        ("fields", {"color": 0.5, "price": 1}, "fields color 0.5, price 1"),
        ("model", "a|b", "model a|b"),
    ],
)
def test_values_are_shown_for_humans(name, value, shown):
    assert " ".join(readme_tables.readable(name, value)) == shown


def test_readme_keeps_its_text_and_check_notices_a_change(pair, folder, capsys):
    around = f"# Mine\n{readme_tables.START}\nold\n{readme_tables.END}\nafter\n"
    (folder.parent / "README.md").write_text(around)
    assert readme_tables.main(["--folder", str(folder), "--check"]) == 1
    assert readme(folder) == around
    assert readme_tables.main(["--folder", str(folder)]) == 0
    assert readme(folder).startswith("# Mine\n") and readme(folder).endswith("\nafter\n")
    assert "old" not in readme(folder)
    assert readme_tables.main(["--folder", str(folder), "--check"]) == 0


def test_a_readme_without_markers_is_an_error(pair, folder):
    (folder.parent / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="results:start"):
        readme_tables.main(["--folder", str(folder)])


def save_executed(folder, name, **records):
    """Write a notebook that has recorded these values."""
    outputs = [new_output("display_data", data={MIMETYPE: {"name": n, "value": v}}) for n, v in records.items()]
    cells = [new_markdown_cell(f"# About {name}"), new_code_cell("", outputs=outputs)]
    nbformat.write(new_notebook(metadata=METADATA, cells=cells), folder / name)


def test_readme_shows_the_headline_and_the_page_of_results_everything(folder):
    six = {f"figure_{letter}": number for number, letter in enumerate("abcdef")}
    save_executed(
        folder, "01_x.ipynb", **six, headline=["figure_f", "figure_b"], claims={"a | b": "met", "c": "not run"}
    )
    save_executed(folder, "02_y.ipynb", proves="it works", **six)
    assert readme_tables.main(["--folder", str(folder)]) == 0
    first, second = (line for line in readme(folder).splitlines() if line.startswith("| [About"))
    assert first.endswith("|  | figure f 5<br>figure b 1 |")
    assert second.endswith("| it works | figure a 0<br>figure b 1<br>figure c 2<br>figure d 3<br>figure e 4 |")
    page = folder.parent / "docs" / "results.md"
    text = page.read_text()
    assert "## [About 01_x.ipynb](../notebooks/01_x.ipynb)\n\n| Figure | Value |" in text
    assert text.count("| figure f | 5 |") == 2 and "| a \\| b | met |\n| c | not run |" in text
    page.write_text(text + "more")
    assert readme_tables.main(["--folder", str(folder), "--check"]) == 1


@pytest.mark.parametrize(
    ("headline", "message"),
    [(["exact", "claims", "b"], "01_x.ipynb: its headline names claims, b, which"), (["exact"] * 6, "names 6 figures")],
)
def test_a_headline_that_does_not_fit_is_an_error(folder, headline, message):
    save_executed(folder, "01_x.ipynb", exact=1, claims={}, headline=headline)
    with pytest.raises(ValueError, match=message):
        readme_tables.main(["--folder", str(folder), "--check"])


def test_changed_parameters_have_an_output_folder_of_their_own():
    notebook = readme_tables.ROOT / "notebooks" / "01_prepare_csv.ipynb"
    runs = [run_notebooks.Run(notebook, None, dict(changed)) for changed in ({"SEED": 1}, {"SEED": 1}, {"SEED": 2})]
    named = run_notebooks.Run(notebook, None, {"OUTPUT_DIR": "mine"})
    for run in (*runs, named):
        run.keep_apart()
    same, again, other = (run.parameters["OUTPUT_DIR"] for run in runs)
    assert same == again != other and same.startswith("outputs/01_prepare_csv_")
    assert named.parameters["OUTPUT_DIR"] == "mine" and not runs[0].needs()


def test_charts_keep_their_looks_in_fewer_bytes():
    chart = Chart(figsize=(6, 3))
    axes = chart.add_subplot()
    axes.imshow(np.linspace(0, 1, 300 * 200).reshape(200, 300), cmap="viridis")
    axes.set_title("a title")
    png = chart._repr_png_()
    found = cleaned(new_output("display_data", data={"image/png": base64.b64encode(png).decode()}))[0].data["image/png"]
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (png, base64.b64decode(found))]
    assert len(base64.b64decode(found)) < 0.7 * len(png)
    assert np.abs(np.subtract(*(np.asarray(image, float) for image in images))).mean() < 3
    twice = cleaned(new_output("display_data", data={"image/png": found}))[0].data["image/png"]
    assert len(twice) <= len(found)
