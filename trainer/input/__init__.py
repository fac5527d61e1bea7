"""Images and captions to tensors: pixels, caches, batches, text states."""
