"""What makes rounding cost less: equalised channels, weights rounded by their effect, corrected biases."""
