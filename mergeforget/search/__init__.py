"""Search: candidates over methods, densities and weights, measured and compared."""
