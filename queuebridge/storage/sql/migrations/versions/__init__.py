"""One module per revision of the schema, numbered in order."""
