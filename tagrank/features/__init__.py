"""From photographs to feature vectors: reading files, backbones, and the store that keeps what they computed."""
