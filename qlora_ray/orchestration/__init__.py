"""Everything that needs Ray: nodes, executors, the pool that leases their slots, and Tune over light trials."""
