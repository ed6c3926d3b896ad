"""A folder of kernels, tables and launch data that a machine with a GPU checks and measures by itself.

``build`` makes it and needs the compiler; all other modules travel in it and need NumPy and cuda-bindings alone.
"""
