"""How shmgen delivers batches, beside what else there is; `make bench` runs it.

cases        the data sets, and their files; storage: where they lie when reading them takes its time (slow_files, slow_server)
beside       shmgen beside the line that users write, for each kind of data; slow_s3: a bucket with latency
matrix       which contests are held on them, by whom, and which figures they give
peers        the contestants: a way each to read batches; readers: how they read a file; bounds: those that nobody can be better
             than; feeds: to feed ``fit``
  ▼
contestant   a process: one of them, timed a turn at a time; machine: what Linux says of its memory and processors
  ▼
team         a contestant's processes, seen from outside
  ▼
contest      gives each its turn, round after round
  ▼
test_speed   hands what was measured to pytest-benchmark
  ▼
report       the tables, which conftest prints at the end and puts into the READMEs, the JSON, and the plot

packed       how much faster one packed file is read than the folder that it was made of, apart from all this
"""
