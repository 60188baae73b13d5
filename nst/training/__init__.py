"""Training: the float network, its losses, its data, and the export to integers."""
