"""Triggers that watch trainings for the triggerer."""
