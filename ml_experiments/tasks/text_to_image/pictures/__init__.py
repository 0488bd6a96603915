"""Picture files and the contact sheet."""
