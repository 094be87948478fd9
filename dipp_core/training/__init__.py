"""Long runs: distillation and alignment, kept, resumed and watched, at every scale."""
