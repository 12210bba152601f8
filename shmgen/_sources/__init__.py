"""What a row of a batch is filled from. Workers import most of these modules, so NumPy is imported only where it is needed."""
