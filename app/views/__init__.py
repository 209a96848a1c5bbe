"""One page a file; each is a short list of steps: load, compute, draw."""
