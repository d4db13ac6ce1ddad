"""python -m benchmarks.parity FILE...: replay recordings of published code through the loader and engine of users."""
