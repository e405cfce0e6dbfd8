"""Several processes that share the rows write what one writes, also when some of them were killed."""

import json
import shutil
import signal

import pytest
from several_processes import call, run_command

from vlmhelpers.cli import main
from vlmhelpers.samples.sample_data import write_sample

pytestmark = pytest.mark.slow

ROWS = 9
GENERATE = [
    "generate",
    "qwen2.5-vl",
    "rows.jsonl",
    "-o",
    "answers.jsonl",
    "--batch-size",
    "2",
    "--max-new-tokens",
    "12",
]
EVALUATE = [
    "evaluate",
    "qwen2.5-vl",
    "--dataset",
    "rows.jsonl",
    "--output",
    "scores",
    "--ablation",
    "--batch-size",
    "3",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with rows, and what one process has written."""
    folder = tmp_path_factory.mktemp("alone")
    write_sample(folder / "rows.jsonl", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(GENERATE) == main(EVALUATE) == 0
    return folder


@pytest.fixture
def folder(alone, tmp_path):
    """A folder with the same rows."""
    shutil.copytree(alone / "images", tmp_path / "images")
    (tmp_path / "rows.jsonl").write_bytes((alone / "rows.jsonl").read_bytes())
    return tmp_path


def saved(folder):
    """The rows of each process's answers."""
    files = sorted(folder.glob("answers.jsonl.log*"))
    return {file.name: [json.loads(line)["row"] for line in file.read_text().splitlines()[1:]] for file in files}


@pytest.mark.parametrize("then", [1, 2, 3])
def test_processes_of_which_one_is_killed_write_the_file_of_one(alone, folder, then):
    codes, printed = call(folder / "printed.txt", run_command, folder, GENERATE, 2, processes=2)
    assert codes[1] == -signal.SIGKILL and not (folder / "answers.jsonl").exists(), printed[-3000:]
    before = saved(folder)
    assert len(before["answers.jsonl.log.1"]) == 4
    codes, printed = call(folder / "printed.txt", run_command, folder, GENERATE, processes=then)
    assert codes == [0] * then, printed[-3000:]
    assert printed.count(f"{ROWS} answers -> answers.jsonl") == 1  # said by one of them
    written, expected = ((where / "answers.jsonl").read_bytes() for where in (folder, alone))
    assert written == expected.replace(str(alone).encode(), str(folder).encode())
    after = saved(folder)
    assert sorted(sum(after.values(), [])) == list(range(ROWS))  # none twice
    assert all(after[name][: len(rows)] == rows for name, rows in before.items())


def test_two_processes_find_the_scores_of_one_and_replace_answers_of_other_settings(alone, folder):
    for options in (["--max-new-tokens", "3"], []):
        codes, printed = call(folder / "printed.txt", run_command, folder, [*EVALUATE, *options], processes=2)
        assert codes == [0, 0], printed[-3000:]
    assert printed.count("answers and scores -> scores") == 2  # once in each call
    found, expected = (json.loads((where / "scores" / "evaluation.json").read_text()) for where in (folder, alone))
    assert found["ablation"] == expected["ablation"] and found["speeds"].keys() == {"base"}
    assert [found[name] for name in ("answers", "scores")] == [expected[name] for name in ("answers", "scores")]
    assert len((folder / "scores" / "base.jsonl.1").read_text().splitlines()) == 1 + ROWS // 2
