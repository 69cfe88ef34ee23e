"""Everything that needs Ray: nodes, executors, the pool that leases their slots, and the search over them."""
