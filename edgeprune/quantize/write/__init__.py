"""The Q/DQ graph: where pairs go, and how they are written."""
