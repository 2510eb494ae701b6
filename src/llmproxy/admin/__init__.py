"""What operators look at: health, metrics, and who may see them."""
