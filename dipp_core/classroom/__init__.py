"""What a reader does: exercises with graders, a playground, votes."""
