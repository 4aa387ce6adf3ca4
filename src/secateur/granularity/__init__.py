"""What is removed, and how scores of elements become scores of it."""
