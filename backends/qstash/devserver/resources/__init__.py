"""The resources of the HTTP API, one module each: what follows `/v2/`."""
