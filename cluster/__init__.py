"""What runs on Ray. Imports `nst` only; `jobs` hands it what to load and what to run."""
