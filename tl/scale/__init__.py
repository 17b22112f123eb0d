"""From one process to many: processes of one machine, sweeps, and an index over runs."""
