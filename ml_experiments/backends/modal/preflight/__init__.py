"""What an experiment imports, and whether a container would have it; nothing is imported."""
