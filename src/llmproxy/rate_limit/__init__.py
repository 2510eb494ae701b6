"""How much may be had: limits, budgets, and who is next when there is a queue."""
