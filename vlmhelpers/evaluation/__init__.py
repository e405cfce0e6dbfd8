"""How good answers are: metrics with intervals, paired comparison, slices, image ablation, the result browser."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "ablation": ["blank_images", "image_ablation", "noise_images", "shuffled_images"],
        "browser": ["browse"],
        "comparison": ["compare", "plot_scores", "plot_tradeoff"],
        "scoring": [
            "by_slice",
            "evaluate",
            "first_number",
            "parsed",
            "price_error",
            "says_all",
            "word_shift",
            "worst_rows",
        ],
    },
)
