"""PyTorch models to small, proven ONNX bundles."""

__all__: list[str] = []
