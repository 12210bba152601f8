"""The calling process's side: who keeps the workers at work, and hands out what they have read."""
