"""The demonstration: real files through every backend, checked against the effects."""
