"""What a run has trained, in the form that another program takes, and how that serves it."""

import shlex
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from markupsafe import Markup

from vlmhelpers.commands.evaluating import EvaluationResult
from vlmhelpers.commands.settings import Merging, Pushing
from vlmhelpers.commands.tuned import base_of, find_weights, is_run, load_tuned, read_settings
from vlmhelpers.common.files import remove_abandoned, temporary_name
from vlmhelpers.common.printable import printable
from vlmhelpers.estimation.suggestion import suggest
from vlmhelpers.export.adapter_files import ADAPTER_CONFIG_FILE
from vlmhelpers.export.adapters import merge, save_adapter
from vlmhelpers.export.hub import Upload, push
from vlmhelpers.export.onnx import exportable, to_onnx
from vlmhelpers.export.onnx_check import OnnxCheck, check_onnx
from vlmhelpers.export.serving import find_converter, ollama_modelfile, serve_command, to_gguf, vllm_command
from vlmhelpers.export.verification import ExportCheck, check_export
from vlmhelpers.training.run import load_held_out

MODELFILE, CARDED = "Modelfile", "adapter_with_card"
_AGREEMENT = 0.9  # of a real model: rounding can turn nearly tied tokens of long answers


@dataclass(frozen=True, repr=False)
class Exported:
    """What `export_run` wrote, with the commands that serve it; a note where something could not be done."""

    folder: str
    form: str
    commands: list[str] = field(default_factory=list)
    check: ExportCheck | OnnxCheck | None = None  # None where nothing was merged, or nothing to ask was there
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check has failed."""
        return self.check is None or self.check.ok

    def __repr__(self):
        checked = [] if self.check is None else [str(self.check)]
        serve = ["To serve it:", *(f"  {command}" for command in self.commands)] if self.commands else []
        return printable("\n".join([f"{self.form} -> {self.folder}", *checked, *self.notes, *serve]))

    def _repr_html_(self):
        parts = [Markup("<p>{}: <code>{}</code></p>").format(self.form, printable(self.folder))]
        parts += [] if self.check is None else [self.check._repr_html_()]
        parts += [Markup("<p>{}</p>").format(printable(note)) for note in self.notes]
        return Markup().join([*parts, *(Markup("<pre>{}</pre>").format(printable(text)) for text in self.commands)])


def export_run(settings: Merging) -> Exported:
    """Writes what a run has trained in the form of `Exporting`; `Merging` is for the form "merged".

    A model whose own weights were trained is whole already: it is served where it lies. Raises FileNotFoundError for a
    folder of nothing that can be exported, FileExistsError for an output that is there, and the errors of `merge`,
    `save_adapter`, `to_gguf` and `to_onnx`.
    """
    folder, run = find_weights(settings.model)
    form = getattr(settings, "form", "merged")
    out = Path(settings.output or (run or folder.parent) / (CARDED if form == "adapter" else form))
    if form == "adapter":
        return _export_adapter(settings, folder, run, out)
    if form == "gguf":
        return _export_gguf(settings, folder, run, out)
    if form == "onnx":
        return _export_onnx(settings, folder, run, out)
    check, notes = _make_whole(settings, folder, run, out)
    merged = out if _is_adapter(folder) else folder
    commands, notes = [], list(notes)
    for make in (serve_command, _vllm_of_merged, _ollama_of_merged):
        try:
            commands.append(make(merged))
        except ValueError as error:  # a family that it does not have
            notes.append(str(error))
    return Exported(str(merged), form, commands, check, notes)


def _vllm_of_merged(folder):
    return vllm_command(merged=folder)


def _ollama_of_merged(folder):
    modelfile = folder.with_name(f"{folder.name}.{MODELFILE}")  # not in the folder, which may be pushed
    modelfile.write_text(ollama_modelfile(folder), encoding="utf-8")
    return _ollama(modelfile)


def _is_adapter(folder):
    return (folder / ADAPTER_CONFIG_FILE).is_file()


def _make_whole(settings, folder, run, out):
    """(an ExportCheck, notes) of the adapter in a folder, merged to `out`."""
    if not _is_adapter(folder):
        return None, [f"{folder} is a whole model already"]
    config = read_settings(run) if run else None
    base = base_of(folder, config, settings.base)
    merge(folder, out, base, getattr(torch, settings.dtype))
    if not settings.check:
        return None, []
    if (rows := _held_out(folder, run)) is None:
        return None, ["Not checked: there are no held-out rows to ask, as the run was without test_rows"]
    agreement = 1.0 if suggest(base).is_tiny else _AGREEMENT
    four_bit = config is not None and config.bits == 4
    return check_export(out, folder, rows, base=base, min_agreement=agreement, four_bit=four_bit), []


def _held_out(folder, run):
    try:
        return load_held_out(run or folder.parent)["test"]
    except FileNotFoundError:
        return None


@contextmanager
def _whole_for_now(settings, folder, run, place):
    """(folder of the whole model, an ExportCheck, notes); what is merged for it lies in `place`, and goes."""
    remove_abandoned(place, "merging")
    temporary = place / temporary_name("merging")
    merged = temporary / "merged" if _is_adapter(folder) else folder
    try:
        yield merged, *_make_whole(settings, folder, run, merged)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _export_gguf(settings, folder, run, out):
    find_converter(settings.llama_cpp)  # before the merge, which takes its time
    with _whole_for_now(settings, folder, run, out) as (merged, check, notes):
        files = to_gguf(merged, out, settings.llama_cpp, settings.outtype)
    modelfile = out / MODELFILE
    modelfile.write_text(ollama_modelfile(files.model, files.mmproj), encoding="utf-8")
    return Exported(str(out), "gguf", [_ollama(modelfile)], check, notes)


def _export_onnx(settings, folder, run, out):
    exportable(base_of(folder, read_settings(run) if run else None, settings.base) if _is_adapter(folder) else folder)
    with _whole_for_now(settings, folder, run, out.parent) as (merged, check, notes):
        to_onnx(merged, out)
        rows = _held_out(folder, run) if settings.check else None
        if rows is not None and (check is None or check.ok):
            check = check_onnx(out, merged, rows)
    return Exported(str(out), "onnx", [], check, [*notes, f"It answers as vlmhelpers.export.OnnxModel({str(out)!r})"])


def _ollama(modelfile):
    return shlex.join(["ollama", "create", "tuned", "-f", str(modelfile)])


def _export_adapter(settings, folder, run, out):
    """Writes the adapter with its card, which reports the last evaluation of the run."""
    if not _is_adapter(folder):
        raise ValueError(f"{folder} is a whole model, and no adapter: choose form=merged or form=gguf")
    tuned, found, notes = load_tuned(settings.model), {}, []
    try:
        evaluation = EvaluationResult.read(run or folder.parent)
        found = {"evaluations": evaluation.evaluations, "comparison": evaluation.comparison}
    except (FileNotFoundError, ValueError):
        notes.append("The card has no scores: evaluate the run by its held-out rows, and export it again")
    if tuned.config and Path(tuned.config.dataset).is_file():
        found["source"] = tuned.config.dataset
    save_adapter(tuned.model, tuned.processor, out, **found)
    try:
        return Exported(str(out), "adapter", [vllm_command(tuned.base, out)], None, notes)
    except ValueError as error:  # an adapter that vLLM does not take
        return Exported(str(out), "adapter", [], None, [*notes, str(error)])


def push_run(settings: Pushing) -> Upload:
    """Sends an exported folder to the Hub, or shows what would be sent. Raises the errors of `export.push`."""
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: export the run first")
    try:
        return push(folder, settings.repo_id, settings.private, dry_run=not settings.send)
    except (FileNotFoundError, ValueError) as error:
        if not (is_run(folder) or is_run(folder.parent)):
            raise
        raise ValueError(
            f"{error}. Or export the run with form=adapter, or merged, and push what that writes"
        ) from error
