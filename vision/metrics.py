"""Prometheus metrics of the service, beside BentoML's own on /metrics. Every label has few values, known beforehand."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

# Only the public process sets the gauges: the value set last is the true one, also after it was replaced.
REQUESTS = Counter("vision_requests", "Requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram("vision_request_seconds", "From the headers to the answer.", ["route"], buckets=SECONDS)
IN_FLIGHT = Gauge("vision_requests_in_flight", "Requests in work.", multiprocess_mode="mostrecent")
REFUSALS = Counter("vision_refusals", "Requests refused before work, by error code.", ["reason"])
IMAGES = Counter(
    "vision_images", "Pictures by task, model and outcome: ok or an error code.", ["task", "model", "outcome"]
)
DECODE_SECONDS = Histogram("vision_decode_seconds", "Decoding of a picture.", buckets=SECONDS)
QUEUE_IMAGES = Gauge(
    "vision_queue_images", "Pictures waiting for a model or in it.", ["task", "model"], multiprocess_mode="mostrecent"
)
INFERENCE_SECONDS = Histogram(
    "vision_inference_seconds", "One batch through a model.", ["task", "model"], buckets=SECONDS
)
BATCH_IMAGES = Histogram("vision_batch_images", "Pictures in a batch.", ["task", "model"], buckets=(1, 2, 4, 8, 12, 16))
MODEL_INFO = Gauge(
    "vision_model_info", "Which models are served; always 1.", ["task", "name", "version"], multiprocess_mode="max"
)
