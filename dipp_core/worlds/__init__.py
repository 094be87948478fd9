"""Worlds in which the method is tried, from closed-form Gaussians to text-to-image diffusion."""
