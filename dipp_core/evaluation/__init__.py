"""Pictures drawn from a generator, and how they are judged."""
