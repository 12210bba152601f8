"""What a row of a batch is filled from."""
