"""The same config with some of its options varied: which value does best on images that are held out."""
