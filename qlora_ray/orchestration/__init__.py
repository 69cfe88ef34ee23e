"""Ray's room: nodes, executors, the pool that leases their slots, and Tune over light trials."""
