"""What travels to the device: run.py, and the template of its README."""
