"""A run that is started again: finished, interrupted, damaged, or no longer the same."""

import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare_runs import weights
from datasets import Dataset
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.preference import PreferenceCollator
from vlmhelpers.common.file_digests import read_digest
from vlmhelpers.data.schema import FEATURES, PAIR_FEATURES, make_pair, make_row
from vlmhelpers.export.adapters import attach, save_adapter
from vlmhelpers.families import tiny_model
from vlmhelpers.models.loading import choose_model, load_model
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.samples.drawing import sample_products
from vlmhelpers.training import identity, pipeline
from vlmhelpers.training.checkpoints import STAMP, resume_from
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.run import RunResult, load_held_out, read_rows, train

pytestmark = pytest.mark.slow
STEPS = 4  # of 6 in an epoch: the last one does not end it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a JSONL file of 80 rows, each with an image of its own."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, (_, image) in enumerate(sample_products(80, "checkpoints", 32)):
        image.save(folder / f"{number}.bmp")
        rows.append({"text": f"What is {number}?", "image": f"{number}.bmp", "response": f"It is {number % 7}."})
    _write(folder, rows)
    return folder


def _write(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def config(config_of, data, tmp_path_factory):
    """Settings of a run of 4 steps on them, with a checkpoint after each."""
    settings = {"dataset": data / "rows.jsonl", "max_steps": STEPS, "save_steps": 1, "test_rows": 8}
    return config_of(tmp_path_factory.mktemp("finished"), **settings, backend="transformers")


@pytest.fixture(scope="module")
def finished(config):
    """The folder of the finished run."""
    assert train(config).steps == STEPS
    return Path(config.output_dir)


def stopped(finished, config, folder):
    """The settings of the same run in `folder`, as if it had been killed after its third step."""
    shutil.copytree(finished, folder / "out")
    for name in (f"checkpoint-{STEPS}", "adapter", "held_out"):
        shutil.rmtree(folder / "out" / name)
    (folder / "out" / "results.json").unlink()
    return replace(config, output_dir=str(folder / "out"))


def digests(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder): (read_digest(path), path.stat().st_mtime_ns) for path in files}


# Finished


def test_a_finished_run_says_so_and_changes_nothing(finished, config, monkeypatch, capsys, tmp_path):
    before = digests(finished)
    monkeypatch.chdir(tmp_path)  # which is nobody's business
    monkeypatch.setattr(pipeline, "make_trainer", None)  # no model is loaded
    assert train(config) == RunResult.read(finished)
    assert f"is finished: {STEPS} steps on 72 rows" in capsys.readouterr().out
    train(replace(config, logging_steps=3, save_steps=2, cache="pixels"))  # which change no weight
    monkeypatch.setattr(identity, "version", lambda name: "99")
    train(config)  # newer libraries are no reason to train again
    assert digests(finished) == before


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_one_killed_before_its_adapter_was_written_trains_no_step_more(config, tmp_path, schedule):
    config = replace(config, output_dir=str(tmp_path), lr_scheduler_type=schedule)
    straight = train(config)
    expected = weights(straight)
    shutil.rmtree(tmp_path / "adapter")
    again = train(config)
    assert (again.steps, straight.steps) == (STEPS, STEPS) and again.history[:STEPS] == straight.history[:STEPS]
    assert all((tensor == expected[name]).all() for name, tensor in weights(again).items())


def test_transformers_alone_trains_beyond_the_last_step(finished, config, tmp_path):
    # The reason for the guard in checkpoints.py: once this fails, it can go. See docs/upstream-resume.md.
    shutil.copytree(finished, tmp_path / "out")
    config = replace(config, output_dir=str(tmp_path / "out"))
    trainer = make_trainer(replace(config, output_dir=str(tmp_path / "other")))
    trainer.train(resume_from_checkpoint=str(finished / f"checkpoint-{STEPS}"))
    assert trainer.state.global_step == STEPS + 1
    trainer = make_trainer(config)
    trainer.train(resume_from_checkpoint=resume_from(trainer))
    assert trainer.state.global_step == STEPS


def make_trainer(config):
    rows = pipeline.load_rows(config, read_rows(config))
    model_id = choose_model(config.model_id)
    return pipeline.make_trainer(pipeline.fill_in(config, model_id, rows.parts), model_id, rows.parts)


def make_second_dpo(folder):
    """A trainer that goes on with an adapter: TRL keeps a copy of it as the reference, in a folder of its own."""
    model, processor = load_model(tiny_model("qwen2.5-vl"), bits=16, backend="transformers")
    pairs = [make_pair("What?", "A bag.", "Nothing.", [image]) for _, image in sample_products(8, "second", 32)]
    lora = LoraConfig(r=4, target_modules=lora_targets(model), init_lora_weights=False)  # as if it had been trained
    set_seed(0)
    return DPOTrainer(
        get_peft_model(model, lora),
        args=DPOConfig(folder, max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-3,
                       report_to="none", use_cpu=True, bf16=False, max_length=None, remove_unused_columns=False),
        train_dataset=Dataset.from_list(pairs, features=PAIR_FEATURES),
        processing_class=processor,
        data_collator=PreferenceCollator(processor),
    )  # fmt: skip


def test_an_adapter_is_loaded_that_lies_beside_the_folder_of_another(tmp_path):
    straight, guarded, unguarded = (make_second_dpo(tmp_path / name) for name in ("straight", "guarded", "unguarded"))
    straight.train(resume_from_checkpoint=resume_from(straight))
    checkpoint = tmp_path / "guarded" / "checkpoint-2"
    shutil.copytree(tmp_path / "straight" / "checkpoint-2", checkpoint)
    assert (checkpoint / "ref" / "adapter_config.json").is_file()
    guarded.train(resume_from_checkpoint=resume_from(guarded))
    # The reason for loading it in checkpoints.py: once this fails, that can go.
    unguarded.train(resume_from_checkpoint=str(checkpoint))
    ends = [dict(trainer.model.named_parameters()) for trainer in (straight, guarded, unguarded)]
    same = [all(torch.equal(ends[0][name], end[name]) for name in ends[0]) for end in ends]
    assert same == [True, True, False]


def make_small(folder, name="default", stream=None, steps=6):
    """A run whose adapter has that name, beside another one, with dropout: random numbers, too."""
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    set_seed(0)
    lora = LoraConfig(r=2, lora_dropout=0.1, target_modules=lora_targets(model))
    model = get_peft_model(model, lora, adapter_name=name)
    model.add_adapter("other", lora)
    model.set_adapter(name)
    arguments = {"max_steps": steps, "save_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}
    arguments |= {"learning_rate": 5e-3, "use_cpu": True, "bf16": False, "max_length": None, "report_to": "none"}
    rows = [make_row("What is it?", f"A {number} hat.") for number in range(6)]
    rows = Dataset.from_list(rows, features=FEATURES)
    arguments = SFTConfig(str(folder), **arguments, gradient_checkpointing=False, remove_unused_columns=False)
    options = {"data_collator": VisionCollator(processor), "processing_class": processor}
    return SFTTrainer(model, arguments, train_dataset=stream(rows) if stream else rows, **options)


class StopAfter(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def resumed(folder, **options):
    """The trainer of a run that is interrupted behind the checkpoint of step 4, and goes on."""
    interrupted = make_small(folder, **options)
    interrupted.add_callback(StopAfter())
    with pytest.raises(KeyboardInterrupt):
        interrupted.train(resume_from_checkpoint=resume_from(interrupted))
    again = make_small(folder, **options)
    again.train(resume_from_checkpoint=resume_from(again))
    return again


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"name": "mine"},
        {"stream": lambda rows: rows.to_iterable_dataset().repeat(None)},
        {"stream": lambda rows: rows.to_iterable_dataset(2).shuffle(3, buffer_size=4).repeat(None)},
    ],
    ids=["mine", "stream", "shuffled"],
)
def test_adapters_of_any_name_and_streams_go_on_to_the_same_last_bit(options, tmp_path):
    whole = make_small(tmp_path / "whole", **options)  # which sets the seed
    whole.train(resume_from_checkpoint=resume_from(whole))
    ends = [dict(trainer.model.named_parameters()) for trainer in (whole, resumed(tmp_path / "again", **options))]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.slow
def test_a_stream_that_ends_before_its_run_is_said_where_the_run_goes_on(tmp_path):
    with pytest.raises(ValueError, match=r"the stream ended at step 6: .* repeat\(None\)"):
        resumed(tmp_path, stream=lambda rows: rows.to_iterable_dataset(), steps=8)


# Damaged


@pytest.fixture(scope="module")
def trainer(config, finished):
    return make_trainer(config)


@pytest.fixture
def copied(trainer, finished, tmp_path, monkeypatch):
    """A copy of the finished run's folder, in which the trainer works."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(trainer.args, "output_dir", str(tmp_path))
    return tmp_path


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def halve(data):
    return data[: len(data) // 2]


DAMAGES = {"zeros": lambda data: bytes(len(data)), "a flipped bit": flip, "half of it": halve}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_damaged_file_costs_one_checkpoint(copied, trainer, name, damage, capsys):
    file = copied / f"checkpoint-{STEPS}" / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert resume_from(trainer) == str(copied / f"checkpoint-{STEPS - 1}")
    assert f"checkpoint-{STEPS}: {name} is not as it was written" in capsys.readouterr().out
    assert (copied / f"damaged-checkpoint-{STEPS}" / name).is_file()
    assert resume_from(trainer) == str(copied / f"checkpoint-{STEPS - 1}")


def test_a_file_of_another_checkpoint_or_none_at_all_is_found(copied, trainer, capsys):
    last, before = (copied / f"checkpoint-{step}" for step in (STEPS, STEPS - 1))
    shutil.copy(before / "scheduler.pt", last / "scheduler.pt")
    assert resume_from(trainer) == str(before)
    (before / "optimizer.pt").unlink()
    assert resume_from(trainer) is None
    out = capsys.readouterr().out
    assert "scheduler.pt is not as it was written" in out and "optimizer.pt is missing" in out
    assert [path.name for path in copied.glob("damaged-*")] == [f"damaged-checkpoint-{STEPS - 1}"]  # the other one went


STAMPS = [
    "",
    '{"identity": {}, "files": {}}',
    "{",
    "null",
    "3",
    "[]",
    "{}",
    '{"identity": {}}',
    '{"identity": 3, "files": {}}',
    "[" * 100_000,
]
STAMPS += ['{"identity": {}, "files": {"optimizer.pt": 7}}', '{"identity": {}, "files": {"a\\u0000b": "1"}}']
STAMPS += ['{"identity": {}, "files": {"..": null}}', "\udcff\udcfe"]


@pytest.mark.parametrize("content", STAMPS, ids=range(len(STAMPS)))
def test_a_stamp_of_any_content_stops_nobody(copied, trainer, content):
    (copied / f"checkpoint-{STEPS}" / STAMP).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert resume_from(trainer) == str(copied / f"checkpoint-{STEPS - 1}")


@contextmanager
def largest_file(size):
    """No file can be larger, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_full_disk_is_named_and_no_half_is_left(finished, config, tmp_path, name):
    config = stopped(finished, config, tmp_path)
    size = (finished / f"checkpoint-{STEPS}" / name).stat().st_size
    with largest_file(size - 1), pytest.raises(OSError, match=rf"the disk took no more of .*checkpoint-{STEPS}"):
        train(config)
    left = sorted(os.listdir(config.output_dir))
    said = ["process.json", "progress.jsonl"]
    assert left == [".lock", "README.md", f"checkpoint-{STEPS - 1}", *said, "run_config.yaml"]
    assert train(config).steps == STEPS


def test_what_is_damaged_of_a_finished_run_is_made_again(finished, config, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    adapter = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(flip(adapter.read_bytes()))
    config_file = adapter.with_name("tokenizer_config.json")
    config_file.write_bytes(halve(config_file.read_bytes()))
    rows = next((tmp_path / "out" / "held_out").rglob("*.arrow"))
    rows.write_bytes(halve(rows.read_bytes()))
    result = train(replace(config, output_dir=str(tmp_path / "out")))
    assert len(load_held_out(tmp_path / "out")["test"]) == 8
    assert config_file.read_bytes() == (finished / "adapter" / config_file.name).read_bytes()
    assert result.steps == STEPS and adapter.read_bytes() == (finished / "adapter" / adapter.name).read_bytes()


def test_a_disk_that_does_not_answer_is_no_reason_to_begin_anew(copied, trainer, config, monkeypatch):
    def refuse(path):
        if path.name in (STAMP, "results.json"):
            raise OSError(errno.EIO, "the disk does not answer")
        return read(path)

    read, before = Path.read_bytes, digests(copied)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for start in (lambda: resume_from(trainer), lambda: train(replace(config, output_dir=str(copied)))):
        with pytest.raises(OSError, match="does not answer"):
            start()
    assert digests(copied) == before


def test_a_finished_run_may_get_its_card(copied, config):
    config = replace(config, output_dir=str(copied))
    model, processor = load_model(tiny_model("qwen2.5-vl"), bits=16, backend="transformers")
    save_adapter(attach(model, copied / "adapter"), processor, copied / "adapter", notes="As it was measured.")
    (copied / "adapter" / "notes.txt").write_text("Mine.")
    before = digests(copied)
    assert train(config).steps == STEPS and digests(copied) == before


def test_a_run_that_is_older_than_a_setting_had_its_default(copied, config):
    results = json.loads((copied / "results.json").read_text())
    for name in ("method", "lora_dropout", "beta"):
        del results["made_of"]["inputs"][name]
    (copied / "results.json").write_text(json.dumps(results))
    before = digests(copied)
    assert train(replace(config, output_dir=str(copied))).steps == STEPS and digests(copied) == before
    with pytest.raises(ValueError, match="has changed: lora_dropout"):
        train(replace(config, output_dir=str(copied), lora_dropout=0.1))


def test_a_finished_run_whose_data_are_gone_is_finished(copied, config, capsys):
    assert train(replace(config, output_dir=str(copied), dataset=str(copied / "gone.jsonl"))).steps == STEPS
    assert "is finished: 4 steps on 72 rows" in capsys.readouterr().out


# Changed


def change_late_answers(data):
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]
    _write(data, [row | {"response": "Another."} if number % 3 else row for number, row in enumerate(rows)])


def replace_images(data):
    """By others of the same size and time of change."""
    for number in range(80):
        file, status = data / f"{number}.bmp", (data / f"{number}.bmp").stat()
        Image.new("RGB", (32, 32), (number, 255 - number, number // 2)).save(file)
        assert file.stat().st_size == status.st_size
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def with_local_base(change):
    """Changes a file in a copy of the base that the run was trained on."""

    def changed(data):
        name, alter = change
        file = data.parent / "base" / name
        file.write_bytes(alter(file.read_bytes()))

    return changed


def alter_one_weight(content):
    return content[:-1] + bytes([content[-1] ^ 1])


CHANGES = {
    "learning_rate": {"learning_rate": 2e-3},
    "image processor's": {"max_pixels": 40_000},
    "quantization": {"bits": 4},
    "training data": change_late_answers,
    "images": replace_images,
    "base weights": with_local_base(("model.safetensors", alter_one_weight)),
    "chat template": with_local_base(("chat_template.jinja", lambda text: b"{# other #}" + text)),
}


@pytest.fixture(scope="module")
def local(config, data, tmp_path_factory):
    """A folder of data, base and an unfinished run on them, to copy."""
    folder = tmp_path_factory.mktemp("local")
    shutil.copytree(data, folder / "data")
    shutil.copytree(tiny_model("qwen2.5-vl"), folder / "base")
    train(_in(folder, config))
    for name in ("adapter", f"checkpoint-{STEPS}"):
        shutil.rmtree(folder / "out" / name)
    (folder / "out" / "results.json").unlink()
    return folder


def _in(folder, config, **changes):
    places = {"dataset": folder / "data" / "rows.jsonl", "model_id": folder / "base", "output_dir": folder / "out"}
    return replace(config, **{name: str(path) for name, path in places.items()}, **changes)


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_named_and_nothing_is_touched(local, config, tmp_path, name):
    shutil.copytree(local, tmp_path / "run")
    before, change = digests(tmp_path / "run" / "out"), CHANGES[name]
    if callable(change):
        change(tmp_path / "run" / "data")
    settings = {} if callable(change) else change
    with pytest.raises(ValueError, match=rf"was trained before this has changed: .*{name}.*accept_changes=True"):
        train(_in(tmp_path / "run", config, **settings))
    assert digests(tmp_path / "run" / "out") == before


def test_the_settings_that_a_finished_run_has_written_are_its_own(finished, config, capsys):
    """There all that was None is filled in."""
    written = RunConfig.read(finished / "run_config.yaml")
    assert config.max_length is None and written.max_length
    assert train(written) == RunResult.read(finished)
    assert "is finished" in capsys.readouterr().out


def test_a_copy_elsewhere_is_the_same_run_and_changes_can_be_accepted(local, config, tmp_path, capsys):
    shutil.copytree(local, tmp_path / "run")
    change_late_answers(tmp_path / "run" / "data")
    assert train(_in(tmp_path / "run", config), accept_changes=True).steps == STEPS
    assert f"going on from {tmp_path / 'run' / 'out' / f'checkpoint-{STEPS - 1}'}" in capsys.readouterr().out
    shutil.copytree(local, tmp_path / "same")
    train(_in(tmp_path / "same", config))
    assert "going on from" in capsys.readouterr().out


def test_a_finished_run_with_other_settings_is_refused_before_anything_is_loaded(finished, config, monkeypatch):
    before = digests(finished)
    monkeypatch.setattr(pipeline, "load_rows", None)
    with pytest.raises(ValueError, match="trained before this has changed: max_steps, seed. Choose another output_dir"):
        train(replace(config, seed=1, max_steps=5))
    assert digests(finished) == before


def test_what_a_finished_run_has_not_seen_cannot_be_accepted_without_a_step(copied, config):
    config, before = replace(config, output_dir=str(copied)), digests(copied)
    with pytest.raises(ValueError, match="no step was made with another learning_rate.*or more steps"):
        train(replace(config, learning_rate=2e-3), accept_changes=True)
    said = {Path("process.json"): None, Path("progress.jsonl"): None}  # that it began, and why it ended
    assert digests(copied) | said == before | said
    assert train(replace(config, learning_rate=2e-3, max_steps=STEPS + 1), accept_changes=True).steps == STEPS + 1


def test_two_runs_in_one_folder_do_not_meet(finished, config):
    with FileLock(finished / ".lock"), pytest.raises(BlockingIOError, match="writes there. Wait for it"):
        train(config)
