"""Shells and other commands in containers: `modal shell` and `modal container exec`."""
