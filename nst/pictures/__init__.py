"""Plain pictures: sizes, colours, octaves, lattices. Runs on the user's machine only."""
