"""Benchmarks of shmgen against other loaders; `make bench` runs them.

cases        the data sets and their files; storage: the same files with latency (slow_files, slow_server)
beside       shmgen against the code that users usually write, for each kind of data; slow_s3: a bucket with latency
matrix       the contests: their data sets, contestants and figures
peers        the contestants; readers: how they read files; bounds: upper bounds; feeds: their data for ``fit``; job: their task
  ▼
contestant   the process of one contestant, which times its own turns; machine: memory, processor time, page cache
  ▼
team         starts and controls a contestant's processes
  ▼
contest      gives every contestant its turn, in each round
  ▼
test_speed   passes the figures on to pytest-benchmark
  ▼
report       prints the tables and puts them into the READMEs (conftest), and writes the JSON and the plot

packed       a separate program: how much faster one packed file is read than the folder it was made from
"""
