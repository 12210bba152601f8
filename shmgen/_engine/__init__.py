"""The main process's side: it keeps the workers busy, and hands out what they have read."""
