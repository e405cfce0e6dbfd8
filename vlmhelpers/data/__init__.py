"""From files to checked rows of one schema: readers, download, validation, split."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "report": ["show_rows"],
        "download.downloader": ["download_images"],
        "readers.csv_reader": ["read_csv"],
        "readers.dataset_reader": ["read_dataset"],
        "readers.jsonl_reader": ["read_alpaca", "read_jsonl", "write_jsonl"],
        "readers.preference_reader": ["read_preferences", "read_prompts", "read_rated"],
        "readers.products_reader": ["read_products"],
        "readers.streaming": ["read_stream"],
        "schema": [
            "FEATURES",
            "PAIR_FEATURES",
            "PROMPT_FEATURES",
            "RATED_FEATURES",
            "answer_of",
            "assistant",
            "conversations",
            "kind_of",
            "make_pair",
            "make_prompt",
            "make_rated",
            "make_row",
            "message_text",
            "user",
        ],
        "splitting": ["split"],
        "turns": ["one_answer_per_row", "prompted", "split_thinking", "to_rated", "to_rows", "with_system"],
    },
)
