"""What the panel keeps in its folder: its settings as they were left, for the panel that is next opened there."""

from pathlib import Path

import yaml

from vlmhelpers.common.files import atomic_file
from vlmhelpers.studio.texts import GROUPS
from vlmhelpers.training.config import RunConfig

FILE = "studio.yaml"


def write_saved(folder: Path, values: dict[str, object]) -> None:
    """Writes "locale", the settings of a run, and those of other groups of `texts.GROUPS` by the group's name."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / FILE, encoding="utf-8") as file:
        yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)


def read_saved(folder: Path) -> dict[str, object]:
    """What `write_saved` wrote, as far as controls take it; nothing for a file that cannot be read."""
    try:
        saved = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(saved, dict):
        return {}
    others = {group: _shown(kind, saved.get(group)) for group, (kind, _) in GROUPS.items()}
    return {"locale": saved.get("locale")} | others | _shown(RunConfig, saved)


def _shown(kind, values):
    """The values that a control can show, right or wrong: a checkbox has no place for a text."""
    if not isinstance(values, dict):
        return {}
    known = {name: setting for name, setting in kind.described().items() if name in values}
    return {name: values[name] for name, setting in known.items() if _can_show(setting, values[name])}


def _can_show(setting, value):
    return setting.kind is not bool or setting.is_optional or isinstance(value, bool)
