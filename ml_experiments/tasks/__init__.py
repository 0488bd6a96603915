"""Ready experiments, found by import path."""
