"""Run any ML experiment class on Modal GPUs, or on this machine, with one call."""

import lazy_loader

__version__ = "0.1.0"

# the public names stand in __init__.pyi; each is imported on first use
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
