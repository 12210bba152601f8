"""The memory that batches are read into, and how much of it there is.

Workers import these modules at their start, all but layout and ring: so only these two import NumPy.
"""
