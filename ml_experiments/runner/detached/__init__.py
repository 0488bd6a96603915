"""Runs and sweeps that go on without the process that started them."""
