"""What every room may use and what knows neither a model nor a row: files, images, display, the environment."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "claims": ["check_claims"],
        "environment": ["compute_dtype", "data_dir", "hidden_gpu", "one_gpu", "peak_memory", "quiet", "show_versions"],
        "records": ["read_records", "record"],
    },
)
