"""The page and the command line: they read run directories and start trainings, and never import torch."""
