"""What a sample is, and which id is which: shapes and dtypes, ids, values by id, and what errors advise."""
