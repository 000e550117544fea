"""Speed: how long the work takes beside a plain matrix product of the same run."""
