"""Drawing: overlays, legends and lettering."""
