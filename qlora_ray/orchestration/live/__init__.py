"""What a running sweep shows of itself: its figures from executors and ledger, the time left, and the terminal's block."""
