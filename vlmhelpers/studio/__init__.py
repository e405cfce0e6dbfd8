"""The training panel: settings, a run as it trains, its answers, and the code that does the same by hand."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__, submod_attrs={"code": ["cells", "command_line", "yaml_text"], "panel": ["Studio"]}
)
