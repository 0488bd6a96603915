"""What goes on in a small container on Modal when its client is gone."""
