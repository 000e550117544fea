"""Running a method over many images: files for each image, a summary, and continuing a run."""
