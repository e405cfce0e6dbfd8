"""Helpers for notebooks that fine-tune vision-language models.

A public name is loaded when it is first used, so that `import vlmhelpers` costs nothing: it loads neither
torch nor transformers nor datasets. That leaves a notebook time to choose a GPU or to import Unsloth before
them.
"""

from importlib import import_module

__version__ = "0.1.0"

# The module that each public name lives in.
_HOMES = {
    "user": "schema",
    "assistant": "schema",
    "make_row": "schema",
    "read_csv": "read",
    "read_jsonl": "jsonl",
    "read_alpaca": "alpaca",
    "read_products": "products",
    "write_jsonl": "jsonl",
    "write_sample": "sampling",
    "download_images": "download",
    "serve_folder": "serving",
    "check_dataset": "check",
    "split": "splitting",
    "VisionCollator": "collate",
    "preflight": "preflight_check",
    "estimate_memory": "memory",
    "memory_table": "memory",
    "estimate_time": "cards",
    "precompute": "precomputing",
    "remember_features": "features",
    "forget_features": "features",
    "tokenize_rows": "packing",
    "one_answer_per_row": "turns",
    "split_thinking": "turns",
    "show_mask": "mask",
    "choose_model": "models",
    "tiny_model": "models",
    "load_model": "models",
    "set_max_pixels": "models",
    "tower_of": "towers",
    "use_unsloth": "backend",
    "add_lora": "backend",
    "unsloth_collator": "backend",
    "fingerprint": "lora",
    "lora_targets": "lora",
    "describe_trainable": "lora",
    "keep_adapters_float32": "lora",
    "watch": "training",
    "resume_from": "training",
    "RunConfig": "runconfig",
    "RunResult": "run",
    "train": "run",
    "generate": "generation",
    "stream_answer": "streaming",
    "evaluate": "evaluation",
    "compare": "comparison",
    "prompted": "prompting",
    "by_slice": "slices",
    "worst_rows": "slices",
    "browse": "browser",
    "parsed": "evaluation",
    "says_all": "evaluation",
    "price_error": "evaluation",
    "blank_images": "looking",
    "shuffled_images": "looking",
    "noise_images": "looking",
    "looks_at_image": "looking",
    "word_shift": "evaluation",
    "save_adapter": "saving",
    "merge": "merging",
    "check_export": "export_check",
    "to_gguf": "gguf_files",
    "ollama_modelfile": "gguf_files",
    "vllm_command": "vllm_serving",
    "push": "hub",
    "show_rows": "pictures",
    "plot_scores": "pictures",
    "plot_tradeoff": "pictures",
    "show_crops": "crops",
    "report_to": "tracking",
    "record": "records",
    "read_records": "records",
    "quiet": "environment",
    "show_versions": "environment",
    "compute_dtype": "environment",
    "data_dir": "environment",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    """Load the module that holds `name` and keep the name for the next time (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
