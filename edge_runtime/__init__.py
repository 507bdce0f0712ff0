"""Sensor messages in over MQTT, ONNX inference, results out over MQTT."""

__all__ = ["__version__"]
__version__ = "0.1.0"
