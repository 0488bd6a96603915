"""What runs on Modal cost: before, by estimate after, and as Modal bills it."""
