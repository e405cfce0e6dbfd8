"""Drawn images, sample data sets and a local file server, so that nothing has to be downloaded."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={"drawing": ["sample_products"], "file_server": ["serve_folder"], "sample_data": ["write_sample"]},
)
