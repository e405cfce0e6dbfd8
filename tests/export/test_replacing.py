"""An export replaces an earlier one whole, or the earlier one stays: after a kill, on a full disk, beside another."""

import itertools
import json
import os
import random
import signal
import time

import psutil
import pytest
from peft import LoraConfig

from vlmhelpers.common.files import remove_abandoned
from vlmhelpers.export.adapters import merge, save_adapter
from vlmhelpers.export.serving import to_gguf
from vlmhelpers.families import tiny_model
from vlmhelpers.models.backends import add_lora


@pytest.fixture
def start():
    """Starts a function in a process of its own, which ends with 1 after a FileExistsError: gives its number."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")

    def fork(function):
        if pid := os.fork():
            return pid
        try:
            function()
            os._exit(0)
        except FileExistsError:
            os._exit(1)
        finally:
            os._exit(2)

    return fork


@pytest.fixture
def adapted(tiny):
    """(a model with an adapter of rank 2, its processor)."""
    model, processor = tiny("qwen3-vl")
    return add_lora(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj")), processor


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_whole(folder):
    """Card, configuration and weights are of one adapter, with a processor."""
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    card = (folder / "README.md").read_text()
    assert f"rank {rank}" in card and f"r = {rank}," in card and (folder / "processor_config.json").is_file()
    assert f'"shape":[{rank},'.encode() in (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_adapter_that_is_killed_while_it_is_replaced_is_one_of_the_two(tiny, tmp_path, start):
    folder, dice, models = tmp_path / "adapter", random.Random(0), {}
    for rank in (2, 3):
        model, processor = tiny("qwen3-vl")
        models[rank] = add_lora(model, LoraConfig(r=rank, target_modules=r".*language_model.*q_proj"))

    def save():
        for rank in itertools.cycle(models):
            save_adapter(models[rank], processor, folder, notes=f"rank {rank}")

    for _ in range(8):
        process = start(save)
        while not folder.exists():
            time.sleep(0.01)
        time.sleep(dice.random() / 2)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        remove_abandoned(tmp_path)  # as the next start does
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
        assert_whole(folder)


def test_a_full_disk_leaves_the_earlier_adapter(adapted, tmp_path, small_files):
    folder = save_adapter(*adapted, tmp_path / "adapter", notes="rank 2")
    before = files_of(folder)
    with small_files(3000), pytest.raises(OSError):
        save_adapter(*adapted, folder, notes="another")
    assert files_of(folder) == before and [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_full_disk_leaves_no_merged_model(adapted, tmp_path, small_files):
    adapter = save_adapter(*adapted, tmp_path / "adapter")
    with small_files(100_000), pytest.raises(OSError, match="the disk took no more of"):
        merge(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.fixture
def small_files():
    """No file can grow beyond these bytes, as on a full disk."""
    resource = pytest.importorskip("resource")

    class Limit:
        def __init__(self, size):
            self.size = size

        def __enter__(self):
            self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

        def __exit__(self, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    return Limit


def test_an_earlier_adapter_is_replaced_by_another(adapted, tmp_path):
    folder = save_adapter(*adapted, tmp_path / "adapter", notes="the first")
    (folder / "training_args.bin").write_bytes(b"of Trainer.save_model")
    save_adapter(*adapted, folder, notes="the second")
    assert "the second" in (folder / "README.md").read_text() and not (folder / "training_args.bin").exists()


@pytest.mark.parametrize("name", ["checkpoint-3/trainer_state.json", "notes.txt", "model.safetensors"])
def test_what_is_no_adapters_is_never_taken_away(name, adapted, tmp_path):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds {name.split('/')[0]}.*choose another folder"):
        save_adapter(*adapted, tmp_path / "run")
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_a_link_to_a_folder_stays_a_link(adapted, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    for _ in range(2):
        save_adapter(*adapted, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "README.md").is_file()


@pytest.mark.slow
def test_of_two_that_merge_into_one_folder_one_wins_and_the_other_says_so(adapted, tmp_path, start):
    adapter = save_adapter(*adapted, tmp_path / "adapter")
    both = [start(lambda: merge(adapter, tmp_path / "merged")) for _ in range(2)]
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in both) == [0, 1]
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


# Writes half of its file, and then does what a file beside it says.
CONVERTER = """
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent
out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
out.write_bytes(b"GGUF half")
if "--mmproj" in sys.argv and (here / "fail").exists():
    sys.exit("out of luck")
if (here / "wait").exists():
    (here / "pid").write_text(str(os.getpid()))
    time.sleep(60)
out.write_bytes(b"GGUF " + (here / "text").read_bytes())
"""


@pytest.fixture
def converter(tmp_path):
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    (folder / "text").write_text("first")
    return folder


def test_a_converter_that_fails_leaves_the_earlier_files(converter, tmp_path):
    files = to_gguf(tiny_model("qwen3-vl"), tmp_path / "gguf", llama_cpp=converter)
    before = files_of(tmp_path / "gguf")
    (converter / "text").write_text("second")
    (converter / "fail").touch()
    with pytest.raises(RuntimeError, match="out of luck"):
        to_gguf(tiny_model("qwen3-vl"), tmp_path / "gguf", llama_cpp=converter)
    assert files_of(tmp_path / "gguf") == before
    (converter / "fail").unlink()
    to_gguf(tiny_model("qwen3-vl"), tmp_path / "gguf", llama_cpp=converter)
    assert files.model.read_bytes() == files.mmproj.read_bytes() == b"GGUF second"


@pytest.mark.slow
def test_a_killed_conversion_leaves_the_earlier_files_and_ends_its_converter(converter, tmp_path, start):
    out = tmp_path / "gguf"
    to_gguf(tiny_model("qwen3-vl"), out, llama_cpp=converter)
    before = files_of(out)
    (converter / "wait").touch()
    process = start(lambda: to_gguf(tiny_model("qwen3-vl"), out, llama_cpp=converter))
    while not (converter / "pid").exists() or not (converter / "pid").read_text():
        time.sleep(0.05)
    child = psutil.Process(int((converter / "pid").read_text()))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
    assert files_of(out) == before
    (converter / "wait").unlink()
    to_gguf(tiny_model("qwen3-vl"), out, llama_cpp=converter)
    assert files_of(out) == before
