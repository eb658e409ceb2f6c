"""What people look at: pages, images, annotated videos."""
