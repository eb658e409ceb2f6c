"""From files to batches: lists, sampling, decoding, transforms, datasets, loaders."""
