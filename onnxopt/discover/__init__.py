"""Models to sites: attention and convolution found by index tracing, and a reason for whatever is refused."""
