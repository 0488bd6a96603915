"""What runs may cost: caps, and the ledger of what was reserved and spent."""
