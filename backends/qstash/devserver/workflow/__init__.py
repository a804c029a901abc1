"""Upstash Workflow: runs, their histories, and what is different about their messages."""
