"""What makes a step faster, one lever a file."""
