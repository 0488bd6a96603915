"""A diffusers pipeline: finding it, checking what it can do, loading it."""
