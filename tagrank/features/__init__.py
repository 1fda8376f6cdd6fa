"""From photographs to feature vectors: reading files, backbones, and the store that keeps features."""
