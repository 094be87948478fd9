"""How it is run: the environment, configuration, the notebook pipeline, figures and tables."""
