"""Flask under gunicorn: what this service replaces."""

from threading import Lock
from typing import Any

from flask import Flask, jsonify, request
from PIL import Image

from benchmarks import documented
from benchmarks.case import Case, is_tuned

app = Flask(__name__)
case = Case.from_environment()

if is_tuned():
    from benchmarks.tuned import Engine

    engine, lock = Engine(case), Lock()

    @app.post("/predict")
    def predict_tuned() -> Any:
        item = engine.decode(request.files["images"].read())
        with lock:  # gunicorn's threads decode side by side, and take turns at the engine
            return jsonify(engine.predict([item])[0])

else:
    look = documented.load(case)

    @app.post("/predict")
    def predict() -> Any:
        return jsonify(look(Image.open(request.files["images"].stream)))
