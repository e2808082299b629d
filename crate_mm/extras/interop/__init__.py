"""Links to other software: export, model cards and timm."""
