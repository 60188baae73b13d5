"""The quantized network as plain data: stages, integers, weights, levels."""
