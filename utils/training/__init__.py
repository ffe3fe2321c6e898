"""What guards a training run."""
