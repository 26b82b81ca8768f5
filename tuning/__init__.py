"""Searches over layer-parallel runs, on Ray Tune and Optuna."""
