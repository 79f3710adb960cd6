"""Noise becomes images: samplers, guidance, `sample` for tensors and `produce` for folders of images."""
