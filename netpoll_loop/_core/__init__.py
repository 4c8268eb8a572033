"""What runs for each callback or packet, in Cython over the C engine."""
