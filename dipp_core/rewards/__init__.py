"""What is preferred: rewards r(x0, cond) -> one value a sample."""
