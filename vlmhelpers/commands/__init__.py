"""What the command line and the panel do with a run: estimate it, evaluate it, talk to it, export it."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, submod_attrs={})
