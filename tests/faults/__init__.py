"""Faults injected into real jobs, and the place where they are: shared by tests and benchmark.

`site` is a Ray cluster of several nodes, an S3 server and a client; `injections` are the faults.
"""
