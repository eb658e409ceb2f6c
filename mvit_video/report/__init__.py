"""What people look at: pages, pictures, annotated videos."""
