"""Writes the address of the project wherever it stands: pyproject.toml, README, the badges and cells of the notebooks.

    python tools/repository.py owner/name

The address in pyproject.toml is the one that counts; a test holds the others equal to it.
"""

import re
import sys
import tomllib

from readme_tables import ROOT

from vlmhelpers.common.files import atomic_file

FILES = "tools/setup_cell.py", "notebooks/*.ipynb", "*.md", "docs/*.md", "pyproject.toml"
# your_name is the placeholder: no account that offers public repositories can have an underscore in its name.
REPOSITORY = r"(your_name|[A-Za-z0-9][A-Za-z0-9-]*)/[\w.-]*\w"


def current(root):
    """The repository that pyproject.toml names, as owner/name."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def mentions(root):
    """Each file that may name the repository, its text, and a pattern whose second group is owner/name, any owner's."""
    name = re.escape(current(root).partition("/")[2])
    pattern = re.compile(rf"(github(?:\.com)?/)([\w-]+/{name})(?![\w-])")
    for path in (path for glob in FILES for path in sorted(root.glob(glob))):
        with open(path, encoding="utf-8", newline="") as file:
            yield path, file.read(), pattern


def write(repository, root=ROOT):
    """Put `repository`, as owner/name, in the place of the address in all files; gives the files that changed.

    Raises ValueError when it is not the name of a repository.
    """
    if not re.fullmatch(REPOSITORY, repository):
        raise ValueError(f"{repository!r} is no repository of GitHub: give owner/name")
    changed = []
    for path, text, pattern in list(mentions(root)):
        new = pattern.sub(rf"\g<1>{repository}", text)
        if new != text:
            with atomic_file(path, encoding="utf-8", newline="") as file:
                file.write(new)
            changed.append(path)
    return changed


def main(arguments):
    if len(arguments) != 1:
        sys.exit("usage: make repository NAME=owner/name")
    try:
        changed = write(arguments[0])
    except ValueError as error:
        sys.exit(str(error))
    print(f"github.com/{arguments[0]} stands in {len(changed)} files more:" if changed else "nothing to change")
    for path in changed:
        print(f"  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
