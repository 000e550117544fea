"""File formats of other tools: detectron2, COCO run-length codes."""
