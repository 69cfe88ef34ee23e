"""The pool: keeps executors as the plan wants them, and grants leases of their slots."""
