"""Where keys, limits and budgets are kept: in memory, in SQLite or in Redis."""
