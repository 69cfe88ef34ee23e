"""What a running sweep shows of itself: figures of executors and ledger, the time left, the terminal's block."""
