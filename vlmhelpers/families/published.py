"""Names of families and of published models, for what cannot wait until transformers is loaded."""

from pathlib import Path

# Families with a tiny base; the first is the one to begin with.
NAMES = ("qwen3-vl", "qwen2.5-vl", "llama-3.2-vision", "phi-3-vision", "internvl")
# The published shapes: hub ids whose config.json lies here, enough to count parameters and to estimate memory with.
SHAPES = Path(__file__).parent / "shapes"
PUBLISHED = tuple(sorted(file.parent.relative_to(SHAPES).as_posix() for file in SHAPES.glob("*/*/config.json")))
