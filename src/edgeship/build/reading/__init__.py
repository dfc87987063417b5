"""What data sets are read from: archives of NumPy, tables, and folders of images, sound or arrays."""
