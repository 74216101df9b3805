"""Which network to keep: loss curves, the program over them, and its solver."""
