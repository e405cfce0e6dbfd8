"""Data: a file, found and recognized; its fields, its rows with images and label mask, what is wrong with it."""

import os
from pathlib import Path

import ipywidgets as widgets

from vlmhelpers.studio.tabs.tab import Tab, said

SPLIT = ("test_rows", "validation_rows", "max_length")
FIELDS = ("text_field", "image_field", "response_field")
_CONVERSATIONS = {"messages", "conversations", "chosen"}  # fields of rows that need no others
_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
_MOST_FILES, _MOST_FOLDERS = 200, 2000
_LEFT_OUT = ("held_out", "node_modules", "site-packages", "checkpoints")


class DataTab(Tab):
    name = "data"

    def build(self):
        studio = self.studio
        self.form_of_file, self._asked = widgets.HTML(), 0
        self.form_of_file.add_class("studio-recognized")
        studio.data_folder.on_change(self.find)
        for name in ("dataset", "method", *FIELDS):
            studio.form.fields[name].on_change(self.recognize)
        yield self.row(studio.data_folder.widget)
        yield studio.form.grid("dataset", "image_root")
        yield self.form_of_file
        yield studio.form.grid(*FIELDS)
        yield studio.form.grid(*SPLIT)
        yield self.row(
            self.button("preview", lambda: self._look("preview", studio.preview)),
            self.button("check", lambda: self._look("check", studio.check)),
        )
        yield self.out

    def _look(self, name, act):
        self.find()  # files that are new since
        self.work(name, act)

    def find(self) -> None:
        """Offers the files of the folder that may hold rows."""
        self.studio.form.fields["dataset"].offer(find_files(self.studio.data_folder.value))

    def recognize(self) -> None:
        """Says what kind of rows the file has, offers its fields, and finds those that it lacks."""
        self._asked += 1
        asked, studio = self._asked, self.studio
        studio.lacking = {}  # what was found of another file, or by other names
        file, named = studio.form.fields["dataset"].value, self._named()

        def done(found):
            if asked == self._asked:  # nothing was chosen since
                form, needed, lacking = found
                for name in FIELDS:
                    studio.form.fields[name].offer(form.fields)
                self.form_of_file.value = self._sentence(form, needed, bool(named))
                studio.refuse_fields(dict.fromkeys(lacking, form.fields))

        def fail(error):
            if asked == self._asked:
                self.form_of_file.value = said(f"\u26a0 {error}", "alert") if os.path.isfile(file) else ""
                studio.refuse_fields({})

        studio.worker.do(lambda: _look_into(file, studio.rows_needed, named), done, fail, beside=True)

    def _named(self):
        """The fields that were named other than by their usual names."""
        values = {name: self.studio.form.fields[name] for name in FIELDS}
        return {name: field.value for name, field in values.items() if field.value != field.setting.default}

    def _sentence(self, form, needed, mapped):
        texts = self.studio.texts
        rows = texts[f"rows.{form.kind}"]
        line = said(texts["form"].format(rows=rows, reader=form.reader, fields=", ".join(form.fields)), "status")
        if needed != form.kind and not mapped:
            method = texts[f"method.{self.studio.form.fields['method'].value}"]
            sentence = texts["form.mismatch"].format(method=method, needed=texts[f"rows.{needed}"], rows=rows)
            line += said(f"\u26a0 {sentence}", "alert")
        return line

    def speak(self, texts):
        super().speak(texts)
        self.recognize()


def _look_into(file, needed, named):
    """(its form, the kind of rows needed, the settings of the fields that it lacks)."""
    from vlmhelpers.data.readers.field_names import FieldNames
    from vlmhelpers.data.readers.recognition import reader_call, recognize

    form = recognize(file)
    reader, arguments = reader_call(file, needed, **named)
    lacking = {name for name, field in named.items() if field not in form.fields}
    if reader == "read_csv":
        lacking |= set(FIELDS) - set(arguments)
    elif reader == "read_jsonl" and not _CONVERSATIONS & set(form.fields):
        usual = {name: FieldNames().usual[name] for name in ("text_field", "response_field") if name not in named}
        lacking |= {name for name, fields in usual.items() if set(fields).isdisjoint(form.fields)}
    return form, needed, lacking


def find_files(folder: str | os.PathLike) -> list[str]:
    """The paths of a folder's files that may hold rows, also of those inside it, the nearest first, at most 200."""
    found, queue = [], [os.fspath(folder or ".")]
    for at in queue:  # which grows: folders come after those that they are in
        _, folders, names = next(os.walk(at), (at, (), ()))
        paths = [os.path.join(at, name) for name in sorted(folders) if _may_hold_data(name)]
        queue += [path for path in paths if not os.path.islink(path)][: _MOST_FOLDERS - len(queue)]
        found += [os.path.join(at, name) for name in sorted(names) if name.lower().endswith(_ENDINGS)]
    return [os.path.normpath(path) for path in found if Path(path).name not in _OWN][:_MOST_FILES]


def _may_hold_data(folder):
    return not folder.startswith((".", "checkpoint-")) and folder not in _LEFT_OUT


# What runs, models and notebooks leave behind is no data.
_OWN = (
    "results.json process.json progress.jsonl samples.json trainer_state.json adapter_config.json config.json "
    "generation_config.json tokenizer.json tokenizer_config.json processor_config.json preprocessor_config.json "
    "complete.json rejected.csv special_tokens_map.json pretraining.json package.json vocab.json state.json "
    "dataset_info.json dataset_dict.json evaluation.json base.jsonl prompted.jsonl tuned.jsonl"
).split()
