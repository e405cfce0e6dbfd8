"""Tiny random models of the image-text-to-text families that no `Family` object describes, and why some have none."""

from other_families import discrete, llava_like, qwen_like

BUILDERS = llava_like.BUILDERS | qwen_like.BUILDERS | discrete.BUILDERS
