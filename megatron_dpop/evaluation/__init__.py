"""Accuracy of an exported model, by lm-evaluation-harness: from a run's folder to scores in it."""
