"""Readers of checkpoint files: .pth, .safetensors and .npz."""
