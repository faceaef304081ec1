"""Prometheus metrics of the service, beside BentoML's own on /metrics. Every label has few values, known beforehand."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

# Only the public process sets the gauges: the value set last is the true one, also after it was replaced.
REQUESTS = Counter("vision_requests", "Requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram("vision_request_seconds", "From the headers to the answer.", ["route"], buckets=SECONDS)
IN_FLIGHT = Gauge("vision_requests_in_flight", "Requests in work.", multiprocess_mode="mostrecent")
REFUSALS = Counter("vision_refusals", "Requests refused before work, by error code.", ["reason"])
IMAGES = Counter("vision_images", "Pictures by task and outcome: ok or an error code.", ["task", "outcome"])
DECODE_SECONDS = Histogram("vision_decode_seconds", "Decoding of a picture.", buckets=SECONDS)
QUEUE_IMAGES = Gauge(
    "vision_queue_images", "Pictures waiting for a runner or in it.", ["task"], multiprocess_mode="mostrecent"
)
INFERENCE_SECONDS = Histogram("vision_inference_seconds", "One batch through a model.", ["task"], buckets=SECONDS)
BATCH_IMAGES = Histogram("vision_batch_images", "Pictures in a batch.", ["task"], buckets=(1, 2, 4, 8, 12, 16, 32))
GPU_MEMORY = Gauge(
    "vision_gpu_memory_used_bytes", "Memory in use of a GPU, by all.", ["gpu"], multiprocess_mode="mostrecent"
)
GPU_MEMORY_TOTAL = Gauge("vision_gpu_memory_bytes", "Memory of a GPU.", ["gpu"], multiprocess_mode="mostrecent")
GPU_UTILIZATION = Gauge(
    "vision_gpu_utilization", "Share of time in which a GPU worked, 0-1.", ["gpu"], multiprocess_mode="mostrecent"
)
MODEL_INFO = Gauge(
    "vision_model_info", "Which models are served; always 1.", ["task", "name", "version"], multiprocess_mode="max"
)
