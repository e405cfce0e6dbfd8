"""Rows of messages, read from any source: the part that the readers of answers to learn share."""

import os
from collections import Counter
from collections.abc import Collection

from datasets import Dataset

from vlmhelpers.data.download.downloader import download_images, is_link
from vlmhelpers.data.download.safe_http import DownloadRules
from vlmhelpers.data.readers.conversations import read_turns
from vlmhelpers.data.readers.field_names import CONVERSATIONS, FieldNames
from vlmhelpers.data.readers.opening import Source
from vlmhelpers.data.rows import ImageRoot


class MessageRows:
    """A source whose rows are read as messages and images.

    image_root: what image paths start from; None: each file's own folder. With `download`, links are downloaded into
    `cache_dir` by `rules`, see download_images. renamed: what its caller calls arguments of FieldNames. given:
    further fields that its caller named.
    """

    renamed: dict[str, str] = {}
    given: Collection[str] = ()

    def __init__(
        self,
        source: Source,
        names: FieldNames,
        image_root: str | os.PathLike | None = None,
        download: bool = False,
        cache_dir: str | os.PathLike | None = None,
        **rules: object,
    ):
        DownloadRules(**rules)  # says what is wrong with them before the source is read
        self._source, self._names, self._roots = source, names, Roots(source, image_root)
        columns = {} if not source.is_table else dict.fromkeys(source.columns)
        columns |= names.in_usual_case(columns)
        self._has_image_column = not {*columns, *columns.values()}.isdisjoint(names.usual["image_field"])
        if download and not source.made:
            self._download(cache_dir, rules)

    def read(self, reader: str) -> Dataset:
        """The Dataset; `reader`: the name of the function that was called, for errors."""
        wanted = {name: self._names.usual[name] for name in ("text_field", "response_field")}
        if self._names.instruction is not None:
            del wanted["text_field"]
        named = self._names.given.values() if wanted.keys() - self.renamed.keys() else ()
        wanted = {self.renamed.get(argument, argument): names for argument, names in wanted.items()}
        also = {*CONVERSATIONS, "chosen", "preferred_output", "annotations"}
        given, usual_case = [*named, *self.given], self._names.in_usual_case
        return self._source.read(self._build, self._roots.of, wanted, also, reader, given=given, usual_case=usual_case)

    def _build(self, row):
        messages, sources = read_turns(row, self._names)
        images = row.get_images(sources, self._roots.of(row))
        if self._has_image_column and messages and not images and row.used.isdisjoint(CONVERSATIONS):
            row.reject("empty image path", "write the image's path, or leave the row out")
        return {"messages": messages, "images": images}

    def _download(self, cache_dir, rules):
        self._roots.downloaded = download_images(self._links_of_sound_rows(), cache_dir, **rules)
        found = self._roots.downloaded.values()
        failures = [one[0].partition(":")[0] for one in found if isinstance(one, tuple)]
        counts = "".join(f", {count} {kind}" for kind, count in Counter(failures).most_common())
        if total := len(found):
            print(f"{total} linked pictures: {total - len(failures)} there{counts}")

    def _links_of_sound_rows(self):
        for row in self._source.rows():
            _, sources = read_turns(row, self._names)
            links = [source for source in sources if isinstance(source, str) and is_link(source)]
            row.get_images([source for source in sources if source not in links], self._roots.of(row))
            if not row.problems:
                yield from links


class Roots:
    """The folder that the image paths of a row start from: the caller's, else that of the row's file."""

    def __init__(self, source: Source, image_root: str | os.PathLike | None):
        self._given, self._folder, self._known, self.downloaded = image_root, source.folder, {}, None
        if image_root is not None:
            self.of(None)  # says whether it is there

    def of(self, row) -> "ImageRoot | None":
        """None where there is no folder, as for a Dataset."""
        folder = self._given if self._given is not None else getattr(row, "folder", None) or self._folder
        if folder is not None and folder not in self._known:
            self._known[folder] = _LinkedRoot(folder, self)
        return self._known.get(folder)


class _LinkedRoot(ImageRoot):
    """An ImageRoot that also resolves URLs, to what download_images returned for them."""

    def __init__(self, folder, roots):
        super().__init__(folder)
        self._roots = roots

    def resolve(self, written):
        if not is_link(written):
            return super().resolve(written)
        if self._roots.downloaded is None:
            remedy = "pass download=True (with the command jsonl: --download), or write the path of an image"
            return None, [(f"not a local file: {written!r}", remedy)], ""
        found = self._roots.downloaded.get(written)  # None in a row with another problem
        if isinstance(found, tuple):
            return None, [(f"{found[0]} ({written[:80]!r})", found[1])], ""
        return found, [], ""
