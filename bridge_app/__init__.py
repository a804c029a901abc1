"""The Flask application that push deliveries reach."""

from queuebridge.loading import naming_extra

with naming_extra("The receiver"):
    from bridge_app.factory import create_app, create_blueprint
    from bridge_app.receiver import FailedDelivery

__all__ = ["FailedDelivery", "create_app", "create_blueprint"]
