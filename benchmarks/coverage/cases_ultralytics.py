"""ultralytics' YOLOs, built from the YAML files inside the package."""

import os
import tempfile
from collections.abc import Iterator

import torch
from benchmarks.coverage.case import Built, Case

NETWORKS = {
    "yolov5n": "DetectionModel",
    "yolov8n": "DetectionModel",
    "yolov8n-seg": "SegmentationModel",
    "yolov8n-pose": "PoseModel",
    "yolov8n-cls": "ClassificationModel",
    "yolov9t": "DetectionModel",
    "yolov10n": "DetectionModel",
    "yolo11n": "DetectionModel",
    "yolo12n": "DetectionModel",
    "yolo26n": "DetectionModel",
    "rtdetr-l": "RTDETRDetectionModel",
}


def cases() -> Iterator[Case]:
    """Yield the nano model of each generation and each task of YOLOv8."""
    for name, network in NETWORKS.items():
        yield Case("ultralytics", name, lambda n=name, network=network: build(n, network))


def build(name: str, network: str) -> Built:
    """Build a YOLO with random weights and two small images."""
    # The package writes a settings file when it is imported and looks for updates.
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    os.environ.setdefault("YOLO_OFFLINE", "1")
    from ultralytics.nn import tasks

    model = getattr(tasks, network)(f"{name}.yaml", verbose=False)
    return model.eval(), (torch.rand(2, 3, 96, 64),), {}
