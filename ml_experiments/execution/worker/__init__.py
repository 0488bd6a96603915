"""Processes in which experiments execute, and what starts, watches and ends them.

    client or container          template.py              guard.py               child.py
    TemplateProcess  ── start ─▶ imports the module ─ fork ▶ watches, ends ─ fork ▶ executes runs

A *template* imports an experiment's module once and never executes a run. For each run it forks a
*guard*, which runs no code of the user's, and the guard forks the *worker*. Where forking is not
safe, the guard starts the worker as a new interpreter instead. The guard adopts and reaps what the
worker leaves behind, and ends everything when the worker ends or the client is gone.
"""
