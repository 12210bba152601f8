"""What a sample is, and which id is which: shapes and dtypes, ids, values by id, and what errors advise.

Modules that a worker imports (sample_spec, casting, npy_format, packed_ids) import NumPy only where it is needed: most workers
never need it, and start three times sooner without.
"""
