"""The set-up of a hosted notebook, on small projects, with installers that only write down what they were asked."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import hosted
import pytest
import run_hosted
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from readme_tables import ROOT, find_notebooks

CELL = (ROOT / "tools" / "setup_cell.py").read_text(encoding="utf-8")
PROJECT = """
[project]
dependencies = ["torch>=2.11,<2.15", "trl>=1.14,<1.15", "PyArrow>=21,<27", "winonly>=1; sys_platform == 'none'"]
[project.optional-dependencies]
unsloth = ["unsloth>=2026.10"]
[tool.vlmhelpers]
where-installed = ["torchao>=0.16"]
"""
GOOD = {"torch": "2.11.0+cu128", "trl": "1.14.2", "pyarrow": "26.0.1"}


class Machine:
    """An environment in a dictionary, whose installer gives a package the version in `offers`, and lists of calls."""

    def __init__(self, packages, offers=GOOD, failure=None, gpus=0):
        self.packages, self.offers, self.failure, self.gpus = dict(packages), offers, failure, gpus
        self.loaded, self.commands, self.constraints = set(), [], ""

    def run(self, command):
        if command[0] == "nvidia-smi":
            return "GPU 0: T4 (UUID: 1)\nGPU 1: T4 (UUID: 2)\n"[: 20 * self.gpus]
        self.commands.append(command)
        if self.failure:
            raise OSError(self.failure)
        self.constraints = Path(command[command.index("--constraint") + 1]).read_text(encoding="utf-8")
        for requirement in map(Requirement, command[command.index("--constraint") + 2 :]):
            self.packages[requirement.name] = self.offers[requirement.name]
        return ""


@pytest.fixture
def content(tmp_path, monkeypatch):
    """An empty working directory, with what a set-up changes of this process brought back after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", hosted.LOADED, "VLMHELPERS_REPOSITORY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def on(monkeypatch):
    """Put a Machine in the place of this one."""

    def use(machine):
        monkeypatch.setattr(hosted, "installed", lambda: dict(machine.packages))
        monkeypatch.setattr(hosted, "loaded", lambda: machine.loaded)
        monkeypatch.setattr(hosted, "run", machine.run)
        return machine

    return use


def make_project(folder, marker=True, project=PROJECT):
    """The project's folder, as the set-up makes it, or as somebody who clones it."""
    for name in ("tools", "notebooks", ".git"):
        (folder / name).mkdir(parents=True)
    (folder / "tools" / "hosted.py").write_text(Path(hosted.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    if marker:
        (folder / hosted.MARKER).touch()
    return folder


def make_origin(folder):
    """A repository of the project, with its files where GitHub shows those of the branch main; gives its address."""
    make_project(folder, marker=False, project=re.sub('".*?"', "", PROJECT.replace('", "', "")))
    (folder / ".git").rmdir()
    (folder / "notebooks" / "empty").touch()
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    (folder / "raw").mkdir()
    (folder / "raw" / "main").symlink_to(folder, target_is_directory=True)
    return folder.as_uri()


def run_cell():
    """Run the set-up cell; gives its variables."""
    exec(compile(CELL, "cell", "exec"), namespace := {})
    return namespace


def test_only_what_is_missing_or_out_of_bounds_is_installed(content, on, capsys):
    root = make_project(content / hosted.FOLDER)
    machine = on(Machine({"torch": "2.11.0+cu128", "pyarrow": "18.1.0", "other": "1"}))
    hosted.set_up("unused")
    (command,) = machine.commands
    assert sorted(command[-2:]) == ["pyarrow<27,>=21", "trl<1.15,>=1.14"]
    assert Path.cwd() == root / "notebooks"
    assert sys.path[0] == os.environ["PYTHONPATH"] == str(root)
    printed = capsys.readouterr().out
    assert "changed: pyarrow 18.1.0 -> 26.0.1\nadded: trl 1.14.2\n" in printed
    assert "left as this image brings them: torch 2.11.0+cu128\n" in printed


def test_what_a_kernel_runs_on_is_pinned_and_the_rest_bounded(content, on):
    make_project(content / hosted.FOLDER)
    machine = on(Machine({"torch": "2.11.0+cu128", "jupyter-client": "7.4.9", "pillow": "11.3.0", "torchmetrics": "1"}))
    hosted.set_up("unused")
    lines = machine.constraints.splitlines()
    assert sorted(lines[:3]) == ["jupyter-client==7.4.9", "pillow==11.3.0", "torch==2.11.0+cu128"]
    assert sorted(lines[3:]) == ["pyarrow<27,>=21", "trl<1.15,>=1.14"]


def test_another_torch_of_the_image_stays_with_a_note(content, on, capsys):
    make_project(content / hosted.FOLDER)
    machine = on(Machine(GOOD | {"torch": "2.16.0"}))
    hosted.set_up("unused")
    assert machine.commands == []
    assert "torch stays at 2.16.0, although only <2.15,>=2.11 was tried" in capsys.readouterr().out


def test_torch_is_installed_where_it_is_missing(content, on):
    make_project(content / hosted.FOLDER)
    machine = on(Machine({"trl": "1.14.0", "pyarrow": "22.0.0"}))
    hosted.set_up("unused")
    assert machine.packages["torch"] == GOOD["torch"]


@pytest.mark.parametrize("found, commands", [(None, 0), ("0.10.0", 1), ("0.17.0", 0)])
def test_a_package_that_is_not_needed_has_to_fit_where_it_is_installed(content, on, found, commands):
    make_project(content / hosted.FOLDER)
    packages = GOOD | ({"torchao": found} if found else {})
    machine = on(Machine(packages, offers={"torchao": "0.18.0"}))
    hosted.set_up("unused")
    assert len(machine.commands) == commands


def test_a_loaded_package_that_changed_asks_for_a_restart_until_there_was_one(content, on, monkeypatch, capsys):
    make_project(content / hosted.FOLDER)
    machine = on(Machine(GOOD | {"pyarrow": "18.1.0"}))
    machine.loaded = {"pyarrow", "torch"}
    for _ in range(2):
        with pytest.raises(hosted.Stop, match=r"^pyarrow changed .* restart it .* from the top\.$"):
            hosted.set_up("unused")
    assert len(machine.commands) == 1
    assert Path.cwd() == content
    monkeypatch.delenv(hosted.LOADED)  # as a new kernel has it
    capsys.readouterr()
    hosted.set_up("unused")
    assert capsys.readouterr().out == "all packages are there\n"
    assert len(machine.commands) == 1


def test_a_loaded_package_that_changed_before_a_failure_asks_for_a_restart_as_well(content, on):
    make_project(content / hosted.FOLDER)
    machine = on(Machine({"torch": "2.11.0", "pyarrow": "18.1.0"}, failure="No space left on device"))
    machine.loaded = {"pyarrow"}
    with pytest.raises(hosted.Stop, match="the disk is full"):
        hosted.set_up("unused")
    machine.failure, machine.packages["pyarrow"] = None, "26.0.1"  # as far as the installer came
    with pytest.raises(hosted.Stop, match="^pyarrow changed"):
        hosted.set_up("unused")
    assert machine.packages["trl"] == "1.14.2"


def test_an_added_package_needs_no_restart(content, on):
    make_project(content / hosted.FOLDER)
    machine = on(Machine({"torch": "2.11.0", "pyarrow": "26.0.1"}))
    machine.loaded = {"trl"}
    hosted.set_up("unused")


@pytest.mark.parametrize(
    "output, words",
    [
        ("error: No space left on device (os error 28)", "the disk is full"),
        (
            "x\nTemporary failure in name resolution\nERROR: No matching distribution found for trl",
            "switch Internet on",
        ),
        ("  × No solution found when resolving dependencies:\n  ╰─▶ Because ...", "exclude each other"),
        ("first line\nsomething new\n", "something new"),
    ],
)
def test_a_failed_installation_is_one_sentence_and_can_be_run_again(content, on, output, words):
    make_project(content / hosted.FOLDER)
    machine = on(Machine({"torch": "2.11.0", "pyarrow": "26.0.1"}, failure=output))
    with pytest.raises(hosted.Stop, match=f"^trl not installed: .*{words}.*; then run this cell again.$") as stop:
        hosted.set_up("unused")
    assert stop.value._render_traceback_() == [str(stop.value)]
    machine.failure = None
    hosted.set_up("unused")
    assert machine.packages["trl"] == "1.14.2"


def test_unsloth_is_installed_where_a_gpu_is(content, on):
    make_project(content / hosted.FOLDER)
    machine = on(Machine(GOOD, offers={"unsloth": "2026.10.9"}, gpus=1))
    hosted.set_up("unused")
    assert machine.packages["unsloth"] == "2026.10.9"
    assert "trl<1.15,>=1.14" in machine.constraints


def test_the_notebooks_do_without_unsloth_where_it_does_not_fit(content, on, capsys):
    make_project(content / hosted.FOLDER)
    on(Machine(GOOD, failure="No solution found", gpus=1))
    hosted.set_up("unused")
    assert "Going on without an optional package. unsloth not installed" in capsys.readouterr().out


@pytest.mark.parametrize("gpus, before, after", [(2, None, "0"), (2, "0,1", "0,1"), (1, None, None)])
def test_the_first_of_several_gpus_is_used(content, on, monkeypatch, gpus, before, after):
    make_project(content / hosted.FOLDER)
    on(Machine(GOOD | {"unsloth": "2026.10.9"}, gpus=gpus))
    if before:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    hosted.set_up("unused")
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == after


def test_an_older_python_is_a_sentence(content, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(hosted.Stop, match="need Python 3.11 or newer"):
        hosted.set_up("unused")


def test_a_checkout_installs_nothing(content, on, monkeypatch, capsys):
    root = make_project(content / "mine", marker=False)
    monkeypatch.chdir(root / "notebooks")
    machine = on(Machine({"torch": "2.16.0", "trl": "1.14.0"}, gpus=2))
    with pytest.raises(hosted.Stop, match="^Not installed: pyarrow. .*`make lab`"):
        hosted.set_up("unused")
    machine.packages["pyarrow"] = "26.0.1"
    hosted.set_up("unused")
    assert capsys.readouterr().out == "torch is 2.16.0; only <2.15,>=2.11 was tried\n"
    assert machine.commands == [] and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_cell_clones_whole_or_not_at_all(content, monkeypatch, capsys):
    origin = make_origin(content / "origin")
    monkeypatch.setattr(hosted, "install", lambda root: None)
    (content / f".{hosted.FOLDER}-killed" / "clone").mkdir(parents=True)
    with pytest.raises(hosted.Stop, match="nothing is there; correct the address"):
        hosted.set_up(f"{origin}-gone")
    assert [path.name for path in content.iterdir()] == ["origin"]
    hosted.set_up(origin)
    assert Path.cwd() == content / hosted.FOLDER / "notebooks"
    monkeypatch.chdir(content)
    capsys.readouterr()
    hosted.set_up(f"{origin}-gone")  # is not asked for what is there
    assert capsys.readouterr().out == ""


def test_without_git_the_sentence_says_so(content, monkeypatch):
    monkeypatch.setenv("PATH", str(content))
    with pytest.raises(hosted.Stop, match="git is not installed here"):
        hosted.set_up("https://example.org/a/b")


def test_a_folder_of_that_name_that_is_something_else_stays(content):
    (content / hosted.FOLDER / "mine").mkdir(parents=True)
    with pytest.raises(hosted.Stop, match="rename it"):
        hosted.set_up("unused")
    assert (content / hosted.FOLDER / "mine").exists()


@pytest.mark.slow
def test_the_cell_fetches_the_set_up_and_runs_it(content, monkeypatch):
    monkeypatch.setenv("VLMHELPERS_REPOSITORY", make_origin(content / "origin"))
    namespace = run_cell()
    assert Path.cwd() == content / hosted.FOLDER / "notebooks"
    assert not {"installed", "clone"} & namespace.keys()


def test_the_cell_without_network_is_one_sentence(content, monkeypatch):
    monkeypatch.setenv("VLMHELPERS_REPOSITORY", (content / "gone").as_uri())
    with pytest.raises(Exception, match=r"gone.* On Kaggle switch Internet on") as stop:
        run_cell()
    assert stop.value._render_traceback_() == [str(stop.value)]


def test_the_cell_refuses_the_placeholder(content, monkeypatch):
    monkeypatch.setenv("VLMHELPERS_REPOSITORY", "https://github.com/your_name/vlm-notebooks")
    with pytest.raises(Exception, match="is a placeholder"):
        run_cell()
    assert list(content.iterdir()) == []


@pytest.mark.parametrize("notebook", find_notebooks(ROOT / "notebooks"), ids=lambda path: path.name[:2])
def test_every_notebook_has_this_cell(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sources[0] == CELL.rstrip("\n")


def test_a_run_with_another_torch_afterwards_has_failed(capsys):
    before = dict.fromkeys(run_hosted.SHOWN, "1.0")
    assert run_hosted.report(before, before | {"trl": "1.14.0"}, [])
    assert not run_hosted.report(before, before | {"torch": "2.0"}, [])
    assert "changed: torch 1.0 -> 2.0\n" in capsys.readouterr().out


def bounds():
    """Name -> requirement of pyproject.toml, the optional ones included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["unsloth"]
    lines += project["tool"]["vlmhelpers"]["where-installed"]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins(name):
    """Name -> version of a list of pins."""
    lines = (line.partition(";")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("name, requirement", bounds().items())
def test_what_a_checkout_runs_is_within_the_bounds(name, requirement):
    assert requirement.specifier.contains((pins("constraints.txt") | pins("requirements.txt"))[name])
    assert any(bound.operator == ">=" for bound in requirement.specifier)


def test_what_stays_of_the_hosted_image_is_within_the_bounds():
    image = pins("tools/colab-2026-08.txt")
    stays = {name for name in bounds().keys() & image.keys() if hosted.KEPT.fullmatch(name)}
    assert {"torch", "torchvision", "numpy", "pandas", "pillow", "matplotlib", "ipython"} <= stays
    assert [name for name in stays if not bounds()[name].specifier.contains(image[name])] == []


def test_every_import_of_the_package_is_declared():
    owners, declared = packages_distributions(), bounds().keys()
    modules = set()
    for path in (ROOT / "vlmhelpers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.partition(".")[0])
    modules -= {*sys.stdlib_module_names, "vlmhelpers", "unsloth_zoo"}  # unsloth's own
    modules -= {"nbformat", "onnxruntime", "tensorboard", "voila"}  # of extras, named where one is missing
    modules -= {"fastapi", "h11", "starlette", "uvicorn"}
    modules.discard("vllm")  # of an environment of its own
    assert len(modules) > 20
    undeclared = {module for module in modules if not {canonicalize_name(n) for n in owners.get(module, ())} & declared}
    assert undeclared == set()
