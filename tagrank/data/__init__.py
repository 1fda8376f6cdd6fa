"""Files with lists of tags, and what is made of them: manifests, vocabularies, targets, drawn scenes."""
