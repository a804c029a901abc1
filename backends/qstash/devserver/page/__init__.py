"""The page of the server, for a browser: `GET /`, its files, and the JSON that only it needs."""
