"""Units of the numbers that the course prints."""

GIB = 2**30  # bytes
