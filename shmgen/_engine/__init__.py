"""The main process's side: it keeps the workers at work, and hands out what they have read."""
