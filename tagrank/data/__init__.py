"""Files with lists of tags, and what tagrank makes from them: manifests, vocabularies, targets, drawn scenes."""
