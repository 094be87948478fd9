"""Worlds in which the method is tried, from Gaussians with closed forms to the plane."""
