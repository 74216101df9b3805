"""The graph run on torch, with gradients: training in INT8, and influences of errors."""
