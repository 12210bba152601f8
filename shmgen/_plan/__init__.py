"""What is to be done, decided without doing it: pure, no process, no clock, no memory but its own."""
