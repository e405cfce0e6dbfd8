"""The job interface: runs that are started, watched and stopped by HTTP."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__, submod_attrs={"app": ["make_app"], "jobs": ["Jobs"], "server": ["serve"]}
)
