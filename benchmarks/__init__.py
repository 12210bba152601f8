"""How many samples a second shmgen delivers, beside what else there is; `make bench` runs it.

cases        the data sets, and their files
  ▼
contestant   a process: one way to read them, timed a turn at a time
  ▼
contest      starts the contestants' processes and gives each its turn, round after round
  ▼
test_speed   hands what was measured to pytest-benchmark
  ▼
report       the table of ratios, which conftest prints at the end
"""
