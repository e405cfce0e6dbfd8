"""What every committed notebook must be, seen without running it."""

import ast
import re

import nbformat
import pytest
import readme_tables
from IPython.core.inputtransformer2 import TransformerManager
from public_names import ROOMS, names_of

from vlmhelpers.common.records import read_records

NOTEBOOKS = readme_tables.find_notebooks(readme_tables.ROOT / "notebooks")
SETUP = (readme_tables.ROOT / "tools" / "setup_cell.py").read_text(encoding="utf-8").strip()
LARGEST = 500_000  # bytes
# Any drive of Windows counts, but for the one made-up path that the broken sample table has in it.
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(home|work|root|tmp|Users)(/|\b)|\b[A-Z]:\\++(?!images\\+bag\.jpg)")
# For a form in Colab: what it is, in a line above the value.
PARAMETER = re.compile(r"# @markdown \S.+\n[A-Z][A-Z0-9_]* = (.+)  # @param \{type:\"(string|raw|boolean)\"\}")

PACKAGES = ["vlmhelpers", *ROOMS, "vlmhelpers.families.phi3_vision", "vlmhelpers.training.methods"]
PUBLIC = {*PACKAGES, *(f"{package}.{name}" for package in PACKAGES for name in names_of(package))}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    """The code cells of a notebook, each with its number as a reader counts it."""
    cells = nbformat.read(path, as_version=4).cells
    return [(number, cell) for number, cell in enumerate(cells, start=1) if cell.cell_type == "code"]


def parsed(cell):
    """The syntax tree of a cell, its IPython magics turned into Python."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def texts(value, key=""):
    """Every string within an output, pictures left out."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, key)
    elif isinstance(value, str) and not key.startswith("image/"):
        yield value


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_numbers_are_unique():
    numbers = [path.name[:2] for path in NOTEBOOKS if path.name[:2].isdigit()]
    assert len(set(numbers)) == len(numbers)


@each_notebook
def test_is_valid_and_runs_on_plain_python(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_every_cell_parses(path):
    for number, cell in code_cells(path):
        try:
            parsed(cell)
        except SyntaxError as error:
            pytest.fail(f"cell {number} does not parse: {error}")


@each_notebook
def test_cells_are_short_and_define_nothing(path):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for number, cell in code_cells(path):
        if cell.source == SETUP:
            continue
        assert len(cell.source.splitlines()) <= 25, f"cell {number} is long: split it"
        found = [node.name for node in ast.walk(parsed(cell)) if isinstance(node, definitions)]
        assert not found, f"cell {number} defines {found}: that belongs into vlmhelpers"


@each_notebook
def test_uses_only_public_names(path):
    """What a notebook takes from the package is listed in the `__init__` of the package or of a room."""
    trees = [(number, parsed(cell)) for number, cell in code_cells(path)]
    face = {name.asname or name.name for _, tree in trees for name in imported(tree) if name.name == "vlmhelpers"}
    used = [(number, name) for number, tree in trees for name in used_names(tree, face)]
    private = [f"cell {number}: {name}" for number, name in used if name not in PUBLIC]
    assert used
    assert not private, private


def imported(tree):
    return [name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]


def used_names(tree, face):
    """Names of the package, dotted as from "vlmhelpers": those imported, and those reached from one of `face`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vlmhelpers":
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("vlmhelpers."))
        elif isinstance(node, ast.Attribute):
            root, *rest = re.split(r"[^\w.]", ast.unparse(node))[0].split(".")
            if root in face:
                depth = 2 if f"vlmhelpers.{rest[0]}" in ROOMS else 1
                yield ".".join(["vlmhelpers", *rest[:depth]])


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("vlm.split(rows)", ["vlmhelpers.split"]),
        ("vlm.data.user('x').strip()", ["vlmhelpers.data.user", "vlmhelpers.data"]),
        ("from vlmhelpers.data.schema import make_row", ["vlmhelpers.data.schema.make_row"]),
        ("import vlmhelpers.data.schema", ["vlmhelpers.data.schema"]),
        ("import torch\nmodel.vlm.data", []),
    ],
)
def test_names_of_the_package_are_found(source, names):
    found = list(used_names(ast.parse(source), {"vlm"}))
    assert set(found) == set(names)


@each_notebook
def test_has_one_cell_of_explained_parameters(path):
    tagged = [cell for _, cell in code_cells(path) if "parameters" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1
    lines = tagged[0].source.splitlines()
    pairs = ["\n".join(lines[i : i + 2]) for i in range(0, len(lines), 2)]
    assert 1 <= len(pairs) <= 10
    for pair in pairs:
        found = PARAMETER.fullmatch(pair)
        assert found, f"not like a line of # @markdown and one of NAME = value  # @param: {pair}"
        kind = {str: "string", bool: "boolean"}.get(type(ast.literal_eval(found[1])), "raw")
        assert found[2] == kind, f"a form would change the type of this value, write {kind}: {pair}"


@each_notebook
def test_names_no_folder_of_a_machine(path):
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
        for text in (cell.source, *texts(cell.get("outputs", []))):
            found = MACHINE_PATH.search(text)
            assert not found, f"cell {number}: {text[max(0, found.start() - 40) : found.end() + 40]!r}"


@each_notebook
def test_was_run_to_its_end_without_errors(path):
    cells = code_cells(path)
    for position, (number, cell) in enumerate(cells, start=1):
        assert cell.execution_count == position, f"cell {number} was not run in order: make notebooks"
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds, f"cell {number} failed"
    assert any(cell.outputs for _, cell in cells)
    records = read_records(path)
    assert records["proves"] and 1 <= len(records["headline"]) <= 5
    assert set(records["claims"].values()) == {"met"}


@each_notebook
def test_shows_no_logs_of_libraries(path):
    streams = [output.text for _, cell in code_cells(path) for output in cell.outputs if output.output_type == "stream"]
    stamped = re.findall(r"^.*\d\d:\d\d:\d\d.*\.(?:cpp|py):\d+\].*$", "\n".join(streams), re.MULTILINE)
    assert not stamped, stamped[:3]


@each_notebook
def test_is_small(path):
    assert path.stat().st_size < LARGEST


def test_readme_shows_the_recorded_values(capsys):
    assert readme_tables.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        ("open('/home/me/x.csv')", True),
        ("cd /work/me", True),
        ("see /tmp", True),
        (r"C:\Users\me", True),
        (r"D:\data", True),
        (r"C:\\images\\cat.jpg", True),
        (r"C:\images\bag.jpg", False),  # a path of the broken sample table
        ("../data/products.csv", False),
        ("https://example.org/home/page", False),
        ("~/.cache/tmp/file", False),
        ("notebooks/root/x", False),
    ],
)
def test_the_pattern_for_machine_paths(text, machine):
    assert bool(MACHINE_PATH.search(text)) is machine
