"""From files on disk to tensors: manifests, vocabularies, targets, stored features, photographs, drawn scenes."""
