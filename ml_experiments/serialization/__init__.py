"""Values as strict JSON and files, and back: the portable result contract.

Plain data becomes JSON; what JSON lacks becomes an object with a `$type` (typed_json.py);
arrays, tensors, images, tables, large bytes and paths of artifacts become a descriptor of a
file (writing.py). Tuples and deques come back as lists; named tuples, dataclasses and
pydantic models as dicts; an enum member as its value. Nothing is pickled.
"""
