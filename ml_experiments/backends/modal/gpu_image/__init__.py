"""What the GPU image holds, as data; `image.py` builds it.

`requirements-gpu.in` is written by hand, `requirements-gpu.lock` is compiled from it: see
`make_lock`.
"""
