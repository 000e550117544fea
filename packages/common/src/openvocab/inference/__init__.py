"""Running a method over many images: results beside each other, a summary, and a way to go on."""
