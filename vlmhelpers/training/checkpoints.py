"""Checkpoints that an interrupted run can go on from: whole to the last bit, and written by the same run."""

import json
import os
import shutil
from pathlib import Path

from datasets import IterableDataset
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from vlmhelpers.common.distributed import on_main
from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.file_digests import read_digest
from vlmhelpers.common.files import atomic_file, name_full_disk, remove_abandoned, sync
from vlmhelpers.training.identity import changes_between, refuse_changes, run_identity

STAMP = "complete.json"  # written last into a checkpoint: the run's identity and each file's digest
ASIDE = "damaged-"  # before the name of a checkpoint that cannot be used
_STREAM = "_vlmhelpers_stream"
_ENDLESS = "where a run goes on, it has to be endless. Make it so with repeat(None)"
_IDENTITY = "_vlmhelpers_identity"  # on a trainer


def resume_from(trainer: Trainer, accept_changes: bool = False) -> str | None:
    """The newest whole checkpoint of this run, for `trainer.train(resume_from_checkpoint=...)`, or None.

    All processes have to call it, and once for each training: from then on the trainer's checkpoints are written to the
    disk with their digests, and it trains no step beyond its last. A checkpoint that is not as it was written is set
    aside, and the one before is taken. The run ends as an undisturbed one does, to the last bit; where the model writes
    the answers that it learns from, only if it samples anew after the checkpoint (PPO does it every
    steps_per_generation * num_iterations batches): those that it had not used up are not kept, and others are sampled.
    A `datasets.IterableDataset` is read again from its beginning, up to the row that comes next; make one that is
    shorter than the training endless, with `repeat(None)`: a run that has gone on raises ValueError where it ends.

    Raises ValueError, with what has changed, where the checkpoint is of another run, unless `accept_changes`;
    RuntimeError without one for a model that is partly trained.
    """
    guarded = hasattr(trainer, _IDENTITY)
    if not guarded or trainer.state.global_step == 0:  # later, its weights are no longer those that it began with
        setattr(trainer, _IDENTITY, on_main(lambda: run_identity(trainer)))
    if not guarded:
        _guard(trainer)
    checkpoint = on_main(lambda: _newest_whole(trainer, accept_changes))
    if checkpoint and isinstance(trainer.train_dataset, IterableDataset):
        _go_on_in_stream(trainer, checkpoint)
    return checkpoint


def _go_on_in_stream(trainer, checkpoint):
    """Lets the stream begin behind the rows that were trained on: transformers would make batches of them first."""
    args, stream = trainer.args, trainer.__dict__.setdefault(_STREAM, trainer.train_dataset)
    trainer.train_dataset = stream.skip(_step_of(checkpoint) * rows_per_step(args))
    args.ignore_data_skip = True
    fetch = type(trainer).get_batch_samples.__get__(trainer)

    def first_batches(*args, **kwargs):
        """Those of the first step: to begin a pass draws a random number that an undisturbed run did not draw here."""
        del trainer.get_batch_samples
        batches = fetch(*args, **kwargs)
        if not batches[0]:
            raise ValueError(f"the stream ended before the row that comes next: {_ENDLESS}")
        trainer._load_rng_state(checkpoint)
        return batches

    trainer.get_batch_samples = first_batches


def rows_per_step(args: TrainingArguments) -> int:
    """The rows of an optimizer step, on all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def _newest_whole(trainer, accept_changes):
    checkpoints = [Path(name) for name in reversed(sort_checkpoints(trainer.args.output_dir))]
    for folder in checkpoints:
        stamp = _read_stamp(folder)
        if flaw := _flaw(folder, stamp):
            _set_aside(folder, flaw, keep=checkpoints)
            continue
        if not accept_changes:
            refuse_changes(folder, stamp["identity"], getattr(trainer, _IDENTITY))
        print(f"going on from {folder}")
        return str(folder)
    if trainer.state.global_step > 0:
        trained = f"the model in memory has trained {trainer.state.global_step} steps without a checkpoint"
        raise CannotRun(f"{trained} in {trainer.args.output_dir}: load the model and make the trainer again")
    return None


def newest_whole(folder: str | os.PathLike) -> Path | None:
    """The newest checkpoint of a run's folder that is as it was written, or None; nothing is set aside."""
    checkpoints = map(Path, reversed(sort_checkpoints(folder)))
    return next((path for path in checkpoints if _flaw(path, _read_stamp(path)) is None), None)


def _read_stamp(folder):
    """What is in the stamp, or None where that is nothing which `_stamp` has written."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None
    parts = [stamp.get("identity"), stamp.get("files")] if isinstance(stamp, dict) else [None]
    is_stamp = all(isinstance(part, dict) and part for part in parts) and "trainer_state.json" in stamp["files"]
    return stamp if is_stamp else None


def _flaw(folder, stamp):
    """Why a checkpoint cannot be used, or None."""
    if stamp is None:
        return "it was not written to its end"
    for name, expected in stamp["files"].items():
        try:
            if read_digest(folder / name) != expected:
                return f"{name} is not as it was written"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return f"{name} is missing"
    return None


def refuse_without_a_step(trainer: Trainer, checkpoint: str | None) -> None:
    """Raises ValueError where a changed run was at its end already: nothing of the change is in its weights."""
    if checkpoint and trainer.state.global_step == _step_of(checkpoint):
        if changed := changes_between(_read_stamp(Path(checkpoint))["identity"], getattr(trainer, _IDENTITY)):
            text = f"{checkpoint} is the end of the run, and no step was made with another {', '.join(changed)}"
            raise ValueError(f"{text}. Choose another output_dir, or more steps")


def load_best(trainer: Trainer) -> None:
    """Puts the weights of the best validation into the model, from its checkpoint; all processes have to call it.

    Leaves the last weights where no validation was the best, and says so. Raises ValueError where the checkpoint is not
    as it was written.
    """
    state = trainer.state
    if state.best_global_step is None:
        print("no validation gave a number: the last weights are kept")
        return
    print(f"the validation of step {state.best_global_step} was the best: its weights are kept")
    if state.best_global_step == state.global_step:
        return
    folder = Path(trainer.args.output_dir) / f"checkpoint-{state.best_global_step}"
    if flaw := on_main(lambda: _flaw(folder, _read_stamp(folder))):
        remedy = "load_best_model_at_end=False keeps the last weights"
        raise ValueError(f"{folder} has the best weights, and {flaw}: train again elsewhere, or {remedy}")
    state.best_model_checkpoint = str(folder)
    trainer._load_best_model()
    _load_top_adapter(trainer.model, folder)


def _set_aside(folder, flaw, keep):
    """Renames a checkpoint: Trainer, which removes the oldest ones, would count it. What was set aside before goes."""
    aside = folder.with_name(ASIDE + folder.name)
    for earlier in folder.parent.glob(f"{ASIDE}checkpoint-*"):
        if folder.with_name(earlier.name.removeprefix(ASIDE)) not in keep or earlier == aside:
            shutil.rmtree(earlier)
    remove_abandoned(folder)
    folder.rename(aside)
    print(f"skipping {folder}: {flaw}. It is {aside.name} now, until another one is damaged")


def _guard(trainer):
    """Makes the trainer stamp its checkpoints, name a full disk, load all of a checkpoint, and stop where it should."""
    save, load, run = trainer._save_checkpoint, trainer._load_from_checkpoint, trainer._run_epoch

    def save_checkpoint(*args, **kwargs):
        folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        try:
            with name_full_disk(folder):
                save(*args, **kwargs)
                trainer.accelerator.wait_for_everyone()  # each process writes some of the files
                if trainer.is_world_process_zero():
                    _stamp(folder, getattr(trainer, _IDENTITY))
        except BaseException:
            if trainer.is_world_process_zero() and _read_stamp(folder) is None:  # half of it would only fill the disk
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def load_from_checkpoint(folder, *args, **kwargs):
        load(folder, *args, **kwargs)
        _load_top_adapter(trainer.model, Path(folder))
        if hasattr(trainer, "_step"):
            _go_on_sampling(trainer, Path(folder))

    def run_epoch(*args, **kwargs):
        # transformers looks for the end after a step only: resumed at its last step, it would train another one.
        if trainer.state.global_step >= trainer.state.max_steps or trainer.control.should_training_stop:
            trainer.control.should_training_stop = True
            return
        run(*args, **kwargs)
        is_over = trainer.state.global_step >= trainer.state.max_steps or trainer.control.should_training_stop
        if hasattr(trainer, _STREAM) and not is_over:  # the next pass would leave out the same rows
            raise ValueError(f"the stream ended at step {trainer.state.global_step}: {_ENDLESS}")

    trainer._save_checkpoint, trainer._run_epoch = save_checkpoint, run_epoch
    trainer._load_from_checkpoint = load_from_checkpoint


def _go_on_sampling(trainer, folder):
    """Puts a trainer of TRL that samples answers to where it was: transformers does not know what such a one counts.

    Some of its batches begin with new samples. Its sampler draws the order of each epoch from one generator.
    """
    trainer._step = _step_of(folder) * trainer.args.gradient_accumulation_steps
    epoch, make_sampler = TrainerState.load_from_json(folder / "trainer_state.json").epoch, trainer._get_train_sampler

    def advanced(*args):
        sampler = make_sampler(*args)
        for _ in range(int(epoch + 1e-6)):
            next(iter(sampler), None)
        return sampler

    trainer._get_train_sampler = advanced


def _step_of(checkpoint):
    return int(Path(checkpoint).name.rpartition("-")[2])


def _load_top_adapter(model, folder):
    """Loads the trained adapter, which peft saves at the top: beside folders of others transformers reads those alone.

    The others are a critic, or TRL's copy of an earlier adapter as the reference.
    """
    if any(folder.glob("*/adapter_config.json")) and (folder / "adapter_config.json").is_file():
        name = model.active_adapter
        model.load_adapter(str(folder), name, is_trainable=True)
        model.set_adapter(name)


def _stamp(folder, identity):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STAMP)
    digests = {file.relative_to(folder).as_posix(): read_digest(file) for file in files}
    for path in {*files, *(file.parent for file in files), folder, folder.parent}:
        sync(path)
    with atomic_file(folder / STAMP, encoding="utf-8") as file:
        json.dump({"identity": identity, "files": digests}, file, indent=1)
