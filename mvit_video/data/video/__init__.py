"""The frames of a file: one reader, several decoders, decoding in guarded processes."""
