"""The RQ backend: enqueue RQ jobs, and run them in RQ workers."""
