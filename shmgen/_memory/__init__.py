"""The memory that batches are read into, and how much of it there is."""
