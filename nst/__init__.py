"""The network, its training, its circuits, and both sides of the cryptography.

Knows nothing of Ray or of any storage; `jobs` and `cluster` build on it.
"""
