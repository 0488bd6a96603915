"""The documented entry point, `modal_runner`, and nothing else.

`modal run …/core/modal_runner.py` puts this folder first on `sys.path`: a neighbour named like
a standard module would hide it.
"""
