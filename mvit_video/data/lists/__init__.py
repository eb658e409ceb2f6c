"""Which videos there are: lists in every known format, as one record type."""
