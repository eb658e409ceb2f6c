"""What happens beside the steps of a run: one file a hook of `loop.Loop`."""
