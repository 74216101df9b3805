"""What a tensor's values range over, and the grids that they are rounded to: watched, proposed, chosen."""
