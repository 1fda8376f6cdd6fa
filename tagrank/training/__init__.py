"""From a manifest to a trained model in a folder."""
