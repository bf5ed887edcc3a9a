"""What must hold for any data, shapes and names, drawn by hypothesis."""
