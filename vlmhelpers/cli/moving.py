"""The command that takes runs to and from other programs."""

from pathlib import Path

import vlmhelpers as vlm

__all__ = ["convert"]


def convert(path: str, to: str | None = None, origin: str | None = None, **options: object) -> None:
    """Writes the files of another program, or reads one of them."""
    if (to is None) == (origin is None):
        raise ValueError("name the program: --to llama-factory or swift writes its files, --from reads one of them")
    meant, other = ("--to", {"output"}) if to else ("--from", {"folder", "name", "device"})
    if wrong := other & options.keys():
        raise ValueError(f"--{wrong.pop()} does not go with {meant}: see convert --help")
    _write(path, to, **options) if to else _read(path, origin, **options)


def _write(path, program, folder="interchange", device=None, **name):
    from vlmhelpers.training.run import read_rows

    write = {"llama-factory": vlm.interchange.to_llama_factory, "swift": vlm.interchange.to_swift}[program]
    config = vlm.RunConfig.read(path)
    print(write(read_rows(config), folder, config, gpu=device and device == "gpu", **name))


def _read(path, program, output=None):
    read = {"llama-factory": vlm.interchange.from_llama_factory, "swift": vlm.interchange.from_swift}[program]
    imported = read(path)
    print(imported)
    if output:
        imported.config.save(Path(output))
        print(f"settings -> {output}")
