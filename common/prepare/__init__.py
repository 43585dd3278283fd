"""Preparing data sets for training: label files, lists, and checks of what is there."""
