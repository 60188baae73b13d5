"""Benchmarks, one command each; see the Makefile. Results lie beside them as JSON."""
