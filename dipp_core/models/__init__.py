"""Networks and prompts: folders in the format of diffusers as scores and one-step generators."""
