"""Which files and folders a job may name: those under one root, wherever links lead to."""

import glob
import os
import re
from pathlib import Path

from vlmhelpers.common.printable import printable
from vlmhelpers.common.settings import shown

_LONGEST, _LONGEST_NAME = 1000, 200  # bytes; beside a name there has to be room for a temporary one
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_WILD = re.compile(r"[*?[]")


class Root:
    """The folder that everything a job names is under."""

    def __init__(self, folder: str | os.PathLike):
        """Raises FileNotFoundError for a folder that is not there."""
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder: name one that is there as the root")

    def path(self, name: str, value: str) -> Path:
        """Where the path `value` of the setting `name` leads to; a relative one starts at the root.

        It need not be there. Raises ValueError, which names the setting, for one that is not under the root.
        """
        if reason := _unusable(value):
            raise ValueError(f"{name} is {shown(value)}: {reason}")
        try:
            found = (self.folder / value).resolve()
        except (OSError, RuntimeError) as error:  # a circle of links
            raise ValueError(f"{name} is {shown(value)}: {error}") from None
        if not found.is_relative_to(self.folder):
            raise ValueError(f"{name} is {shown(value)}: that is not under the root of the jobs; name what is")
        return found

    def existing(self, name: str, value: str) -> Path:
        """As `path`, of a file or folder that is there; ValueError for another."""
        found = self.path(name, value)
        if not (found.is_file() or found.is_dir()):
            raise ValueError(f"{name} is {shown(value)}: there is no such file or folder under the root of the jobs")
        return found

    def shards(self, name: str, value: str) -> Path:
        """As `existing`, of a file or a pattern of files, all of which are under the root."""
        pattern = self.path(name, value)
        if not _WILD.search(value):
            return self.existing(name, value)
        if value.count("**") > 1:
            raise ValueError(f"{name} is {shown(value)}: write ** once at most")
        files = glob.glob(str(pattern), recursive=True)
        if not files:
            raise ValueError(f"{name} is {shown(value)}: no file under the root of the jobs has such a name")
        for file in files:
            self.path(name, file)
        return pattern

    def model(self, name: str, value: str) -> str:
        """The path of a model's folder under the root; a hub id or a family as it is. ValueError for another."""
        if not _unusable(value) and (self.folder / value).is_dir():
            return str(self.path(name, value))
        if not _HUB_ID.fullmatch(value):
            self.path(name, value)
            raise ValueError(f"{name} is {shown(value)}: no folder under the root of the jobs, no hub id, no family")
        if os.path.exists(value):  # where the server was started, and a run would take it
            raise ValueError(f"{name} is {shown(value)}: that is not under the root of the jobs; name what is")
        return value

    def relative(self, path: str | os.PathLike) -> str:
        """`path` as a job may name it."""
        return Path(path).relative_to(self.folder).as_posix()


def _unusable(value):
    """Why no path of a job is written like this, if it is not."""
    parts = Path(value).parts
    if printable(value) != value or any(mark in value for mark in "\n\t"):
        return "write it without control characters"
    if ".." in parts or any(part.startswith("~") for part in parts):
        return "write it without .. and ~"
    if len(value.encode()) > _LONGEST or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        return f"it is too long: {_LONGEST} bytes are allowed, and {_LONGEST_NAME} for each name in it"
    return None
