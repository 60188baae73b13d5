"""Batch jobs: command line, client's side, store, and execution on the server."""
