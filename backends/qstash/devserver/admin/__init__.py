"""What tests do to the server, below `/_queuebridge/`: move its time, script faults, read what it sent."""
