"""Tables of records: pivoting, crossing, and writing them in every format."""
