"""Studies on top of mtl_jax: ``python -m experiments STUDY [options]``."""
