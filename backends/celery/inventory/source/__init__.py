"""Reading source code: by its syntax alone. Nothing here imports or executes what it reads."""
