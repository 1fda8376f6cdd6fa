"""The model: from a feature vector to a distribution over tags for each position of a list."""
